"""The command line: a thin layer over the functions of the same names.

Parsing needs argparse alone; a verb is imported when it runs, so that `--help` answers at once.

Exit codes: 0 done; 1 `predict --fail-on-abnormal` found an abnormal image, `datasets` found a copy that is not whole,
or `benchmark` has a cell that failed or a row that does not hold; 2 bad input; 70 a bug in metalad; 130 Ctrl-C; 141 the
reader of a pipe went away.
"""

import argparse
import contextlib
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metalad.cli.benchmark import add_benchmark_options, run_benchmark
from metalad.cli.options import (
    add_compare_options,
    add_datasets_options,
    add_demo_options,
    add_evaluate_options,
    add_methods_options,
    add_predict_options,
    add_train_options,
)
from metalad.cli.terminal import BAD_INPUT, explain, note, print_json, survive_odd_file_names
from metalad.runtime.errors import printable

if TYPE_CHECKING:
    from metalad.detectors.base import DetectorConfig
    from metalad.pipelines.predict import PredictedImage
    from metalad.results.report import Report

ABNORMAL_FOUND = 1
NOT_WHOLE = 1

NOT_PASSED_ON = {"verb", "version", "json", "quiet", "set", "fail_on_abnormal", "listing", "tables", "verify"}
"""Options that only the command line knows; all others are keywords of the verb's function."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (by default the process's own) and return its exit code.

    A mistake of the user ends in one line on stderr; `METALAD_TRACEBACK=1` in the environment adds the traceback.

    Raises:
        SystemExit: argparse printed help (0) or found fault with the arguments (2).
    """
    survive_odd_file_names()
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here a closed pipe or a full disk can still be told of
    except (Exception, KeyboardInterrupt) as error:
        return explain(error)


def build_parser() -> ArgumentParser:
    """Return the parser of all verbs."""
    parser = ArgumentParser(
        prog="metalad",
        description="Learn from good images which images are abnormal, and where.",
        epilog="`metalad VERB --help` tells more; begin with `metalad demo`.",
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, verb in VERBS.items():
        verb_parser = verbs.add_parser(
            name,
            help=verb.summary,
            description=f"{verb.summary[0].upper()}{verb.summary[1:]}.",
            epilog=verb.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_options(verb_parser)
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.version:
        from importlib.metadata import version

        print(f"metalad {version('metalad')}")
        return 0
    if options.verb is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    return VERBS[options.verb].carry_out(options)


# What each verb does with them.


def _train(options: Namespace) -> int:
    from dataclasses import asdict

    from metalad.pipelines.train import train
    from metalad.runtime.tasks import rank

    model = train(**_keywords(options) | {"method": _method(options)})
    if rank():  # of what `torchrun` started the first alone tells
        return 0
    header, scoring = model.header, model.scoring(None)
    if options.json:
        print_json({"model": str(model.path), "scoring": scoring, **asdict(header)})
    else:
        print(f"{model.path}: {header.method}, learnt from {header.images['training']} good images")
        print(f"threshold {header.thresholds[scoring]:.4g} ({scoring}), for {header.false_alarms:.3g} false alarms")
        caution = model.caution()
        if caution and not options.quiet:
            note(caution)
    return 0


def _evaluate(options: Namespace) -> int:
    from metalad.pipelines.evaluate import evaluate

    report = evaluate(**_keywords(options))
    run = options.run if options.run.is_dir() else options.run.parent
    _print_report(report, (options.out or run / "evaluation") / "report.html", as_json=options.json)
    return 0


def _predict(options: Namespace) -> int:
    from metalad.pipelines.predict import predict

    judged = abnormal = unreadable = 0
    # On a terminal the results themselves show the progress; a bar would run into them.
    progress = not options.quiet and not sys.stdout.isatty()
    with contextlib.closing(predict(**_keywords(options) | {"progress": progress})) as results:
        for result in results:
            judged += result.error is None
            unreadable += result.error is not None
            abnormal += bool(result.abnormal)
            _print_prediction(result, as_json=options.json)
    if not options.quiet:
        skipped = f", {unreadable} unreadable" if unreadable else ""
        note(f"{abnormal} of {judged} images abnormal{skipped}; written to {options.out}")
    return ABNORMAL_FOUND if options.fail_on_abnormal and abnormal else 0


def _compare(options: Namespace) -> int:
    from metalad.pipelines.compare import compare
    from metalad.results.comparison import comparison_table

    comparison = compare(**_keywords(options))
    if options.json:
        print_json({**comparison.to_json(), "page": str(options.out)})
    else:
        print(f"{comparison_table(comparison)}\npage: {options.out}")
    return 0


def _methods(options: Namespace) -> int:
    from metalad.methods import methods

    if options.name is not None:
        return _method_settings(options)
    rows = [(method.name, method.summary) for method in methods().values()]
    if options.json:
        print_json([{"name": name, "summary": summary} for name, summary in rows])
    else:
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:{width}}  {summary}" for name, summary in rows))
    return 0


def _method_settings(options: Namespace) -> int:
    from metalad.methods import method_named
    from metalad.runtime.settings import describe

    method = method_named(options.name)
    rows = describe(method.load_config())
    if options.json:
        settings = [{"name": name, "default": default, "help": help_text} for name, default, help_text in rows]
        print_json({"name": method.name, "summary": method.summary, "settings": settings})
    else:
        width = max(len(f"{name}={default}") for name, default, _ in rows)
        print(f"{method.name}: {method.summary}\n")
        print("\n".join(f"{f'{name}={default}':{width}}  {help_text}" for name, default, help_text in rows))
    return 0


def _datasets(options: Namespace) -> int:
    from metalad.pipelines.datasets import datasets

    found = datasets(options.name, options.data)
    if options.json:
        every = [copy.to_json() for copy in found]
        print_json(every if options.name is None else every[0])
    else:
        for copy in found:
            print("\n".join(map(printable, copy.text().splitlines())))
    return 0 if all(copy.is_whole for copy in found) else NOT_WHOLE


def _demo(options: Namespace) -> int:
    from metalad.pipelines.demo import demo

    _print_report(demo(**_keywords(options)), options.out / "evaluation" / "report.html", as_json=options.json)
    return 0


class Verb(NamedTuple):
    """One line on a verb, what its help ends with, how it adds its options and what it does with them."""

    summary: str
    epilog: str
    add_options: Callable[[ArgumentParser], None]
    carry_out: Callable[[Namespace], int]


VERBS: Mapping[str, Verb] = {
    "train": Verb(
        "learn from good images",
        "example:\n  metalad train bottle --out runs/bottle --minutes 5",
        add_train_options,
        _train,
    ),
    "evaluate": Verb(
        "measure a model on test images and write a report",
        "example:\n  metalad evaluate runs/bottle bottle",
        add_evaluate_options,
        _evaluate,
    ),
    "predict": Verb(
        "judge images and write their anomaly maps",
        "prints a line an image, with --json a JSON object a line.\n\n"
        "example:\n  metalad predict runs/bottle new-images --out judged --fail-on-abnormal",
        add_predict_options,
        _predict,
    ),
    "compare": Verb(
        "set runs side by side in one page",
        "example:\n  metalad compare runs/metal runs/patchcore --data bottle",
        add_compare_options,
        _compare,
    ),
    "methods": Verb(
        "list the methods, or the settings of one",
        "examples:\n  metalad methods\n  metalad methods metal",
        add_methods_options,
        _methods,
    ),
    "datasets": Verb(
        "list the data sets known by name, or check a copy of one",
        "exits with 1 if the copy is not whole; nothing is downloaded.\n\n"
        "examples:\n  metalad datasets\n  metalad datasets mvtec --data datasets",
        add_datasets_options,
        _datasets,
    ),
    "demo": Verb(
        "train and evaluate on photographs of cookies that ship with metalad",
        "examples:\n  metalad demo\n  metalad demo --out cookies --method metal --minutes 1",
        add_demo_options,
        _demo,
    ),
    "benchmark": Verb(
        "train and evaluate methods on your own categories with several seeds, and write a table",
        "exits with 1 if a cell failed.\n\n"
        "example:\n  metalad benchmark --methods patchcore,metal_features --data bottle cable --seeds 3",
        add_benchmark_options,
        run_benchmark,
    ),
}


def _keywords(options: Namespace) -> dict[str, Any]:
    passed_on = {name: value for name, value in vars(options).items() if name not in NOT_PASSED_ON}
    return passed_on | {"progress": not options.quiet}


def _method(options: Namespace) -> "str | DetectorConfig":
    from metalad.methods import method_named
    from metalad.runtime.settings import from_texts

    if not options.set:
        return str(options.method)
    return from_texts(method_named(options.method).load_config(), options.set)


def _print_report(report: "Report", page: Path, *, as_json: bool) -> None:
    from metalad.results.report_text import report_table

    if as_json:
        print_json({**report.flat(), "report": str(page)})
    else:
        print(f"{report_table(report)}\nreport: {page}")


def _print_prediction(result: "PredictedImage", *, as_json: bool) -> None:
    if as_json:
        print_json(result.to_json())
    elif result.error is None:
        print(f"{'NG' if result.abnormal else 'OK'}  {result.score:<10.4g}  {printable(result.path)}", flush=True)
    if result.error is not None:
        note(f"skipped {result.path}: {result.error}")
