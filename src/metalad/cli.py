"""The command line: a thin layer over the functions of the same names.

Parsing needs argparse alone; a verb is imported when it runs, so that `--help` answers at once.

Exit codes: 0 done; 1 `predict --fail-on-abnormal` found an abnormal image; 2 bad input; 70 a bug in metalad;
130 Ctrl-C; 141 the reader of a pipe went away.
"""

import argparse
import contextlib
import errno
import json
import os
import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metalad.errors import MetaladError

if TYPE_CHECKING:
    from metalad.detector import DetectorConfig
    from metalad.predict import PredictedImage
    from metalad.report import Report

ABNORMAL_FOUND = 1
BAD_INPUT = 2
BUG = 70
INTERRUPTED = 130
PIPE_CLOSED = 141

REMEDIES = {
    errno.ENOSPC: "; free some space or choose another folder",
    errno.EACCES: "; choose files and folders that you may read and write",
    errno.EMFILE: "; raise the limit on open files (`ulimit -n`)",
}

NOT_PASSED_ON = {"verb", "version", "json", "quiet", "set", "fail_on_abnormal"}
"""Options that only the command line knows; all others are keywords of the verb's function."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (by default the process's own) and return its exit code.

    A mistake of the user ends in one line on stderr; `METALAD_TRACEBACK=1` in the environment adds the traceback.

    Raises:
        SystemExit: argparse printed help (0) or found fault with the arguments (2).
    """
    _survive_odd_file_names()
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here a closed pipe or a full disk can still be told of
    except (Exception, KeyboardInterrupt) as error:
        return _explain(error)


def build_parser() -> ArgumentParser:
    """Return the parser of all verbs."""
    parser = ArgumentParser(
        prog="metalad",
        description="Learn from good images which images are abnormal, and where.",
        epilog="`metalad VERB --help` tells more; begin with `metalad demo`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
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


# What each verb takes. Names and defaults are those of the verb's function; a test keeps them equal.


def _train_options(parser: ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", type=Path, help="a category's folder, or any folder of good images")
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help="the run folder to make")
    parser.add_argument(
        "--method", metavar="NAME", default="metal", help="see `metalad methods`; %(default)s by default"
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of the method, such as depth=2; may be repeated; `metalad methods NAME` lists them",
    )
    parser.add_argument(
        "--protocol",
        choices=("default", "paper"),
        default="default",
        help="paper: train as published, however long; default: as good, much sooner",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of all chance; %(default)s by default")
    parser.add_argument("--epochs", metavar="N", type=int, help="train for so many epochs")
    parser.add_argument("--minutes", metavar="M", type=float, help="shorten training to fit into so many minutes")
    parser.add_argument(
        "--false-alarms",
        metavar="RATE",
        type=float,
        default=0.01,
        help="wanted fraction of good images above the threshold; %(default)s by default",
    )
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    _strict_option(parser)
    _common_options(parser)


def _evaluate_options(parser: ArgumentParser) -> None:
    _run_argument(parser)
    parser.add_argument("data", metavar="DATA", type=Path, help="a category's folder with test images")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the reports go; RUN/evaluation by default")
    _judging_options(parser)
    _strict_option(parser)
    _common_options(parser)


def _predict_options(parser: ArgumentParser) -> None:
    _run_argument(parser)
    parser.add_argument("paths", metavar="PATH", type=Path, nargs="+", help="images, or folders of them")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where maps and overlays go")
    parser.add_argument(
        "--fail-on-abnormal",
        action="store_true",
        help="exit with 1 if any image is abnormal; an unreadable one is not judged, see --strict",
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=16, help="images judged at once; %(default)s by default"
    )
    for name in ("maps", "overlays"):
        parser.add_argument(f"--no-{name}", dest=name, action="store_false", help=f"write no {name}")
    _judging_options(parser)
    _strict_option(parser)
    _common_options(parser)


def _methods_options(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="list this method's settings")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _demo_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("demo-run"), help="the run folder; %(default)s by default"
    )
    parser.add_argument("--minutes", metavar="M", type=float, help="shorten training to fit into so many minutes")
    _common_options(parser)


def _run_argument(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder of `metalad train`, or a model file")


def _judging_options(parser: ArgumentParser) -> None:
    parser.add_argument("--scoring", choices=("calibrated", "raw"), help="score to judge by; the model's by default")
    parser.add_argument(
        "--false-alarms",
        metavar="RATE",
        type=float,
        help="wanted fraction of good images above the threshold; the model's by default",
    )


def _strict_option(parser: ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image; else skip and count")


def _common_options(parser: ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", default="auto", help="cpu, cuda or auto; %(default)s by default")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on stdout")
    parser.add_argument("--quiet", action="store_true", help="show no progress and no notes")


# What each verb does with them.


def _train(options: Namespace) -> int:
    from dataclasses import asdict

    from metalad.train import train

    model = train(**_keywords(options) | {"method": _method(options)})
    header, scoring = model.header, model.scoring(None)
    if options.json:
        _print_json({"model": str(model.path), "scoring": scoring, **asdict(header)})
    else:
        print(f"{model.path}: {header.method}, learnt from {header.images['training']} good images")
        print(f"threshold {header.thresholds[scoring]:.4g} ({scoring}), for {header.false_alarms:.3g} false alarms")
    return 0


def _evaluate(options: Namespace) -> int:
    from metalad.evaluate import evaluate

    report = evaluate(**_keywords(options))
    run = options.run if options.run.is_dir() else options.run.parent
    _print_report(report, (options.out or run / "evaluation") / "report.html", as_json=options.json)
    return 0


def _predict(options: Namespace) -> int:
    from metalad.predict import predict

    judged = abnormal = unreadable = 0
    with contextlib.closing(predict(**_keywords(options))) as results:
        for result in results:
            judged += result.error is None
            unreadable += result.error is not None
            abnormal += bool(result.abnormal)
            _print_prediction(result, as_json=options.json)
    if not options.quiet:
        skipped = f", {unreadable} unreadable" if unreadable else ""
        _note(f"{abnormal} of {judged} images abnormal{skipped}; written to {options.out}")
    return ABNORMAL_FOUND if options.fail_on_abnormal and abnormal else 0


def _methods(options: Namespace) -> int:
    from metalad.methods import methods

    if options.name is not None:
        return _method_settings(options)
    rows = [(method.name, method.summary) for method in methods().values()]
    if options.json:
        _print_json([{"name": name, "summary": summary} for name, summary in rows])
    else:
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:{width}}  {summary}" for name, summary in rows))
    return 0


def _method_settings(options: Namespace) -> int:
    from metalad.methods import method_named
    from metalad.settings import describe

    method = method_named(options.name)
    rows = describe(method.load_config())
    if options.json:
        settings = [{"name": name, "default": default, "help": help_text} for name, default, help_text in rows]
        _print_json({"name": method.name, "summary": method.summary, "settings": settings})
    else:
        width = max(len(f"{name}={default}") for name, default, _ in rows)
        print(f"{method.name}: {method.summary}\n")
        print("\n".join(f"{f'{name}={default}':{width}}  {help_text}" for name, default, help_text in rows))
    return 0


def _demo(options: Namespace) -> int:
    from metalad.demo import demo

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
        _train_options,
        _train,
    ),
    "evaluate": Verb(
        "measure a model on test images and write a report",
        "example:\n  metalad evaluate runs/bottle bottle",
        _evaluate_options,
        _evaluate,
    ),
    "predict": Verb(
        "judge images and write their anomaly maps",
        "prints a line an image, with --json a JSON object a line.\n\n"
        "example:\n  metalad predict runs/bottle new-images --out judged --fail-on-abnormal",
        _predict_options,
        _predict,
    ),
    "methods": Verb(
        "list the methods, or the settings of one",
        "examples:\n  metalad methods\n  metalad methods metal",
        _methods_options,
        _methods,
    ),
    "demo": Verb(
        "train and evaluate on photographs of cookies that ship with metalad",
        "example:\n  metalad demo --out cookies --minutes 1",
        _demo_options,
        _demo,
    ),
}


def _keywords(options: Namespace) -> dict[str, Any]:
    passed_on = {name: value for name, value in vars(options).items() if name not in NOT_PASSED_ON}
    return passed_on | {"progress": not options.quiet}


def _method(options: Namespace) -> "str | DetectorConfig":
    from metalad.methods import method_named
    from metalad.settings import from_texts

    if not options.set:
        return str(options.method)
    return from_texts(method_named(options.method).load_config(), options.set)


def _print_json(value: object) -> None:
    print(json.dumps(value, allow_nan=False), flush=True)


def _print_report(report: "Report", page: Path, *, as_json: bool) -> None:
    from metalad.report import report_table

    if as_json:
        _print_json({**report.flat(), "report": str(page)})
    else:
        print(f"{report_table(report)}\nreport: {page}")


def _print_prediction(result: "PredictedImage", *, as_json: bool) -> None:
    if as_json:
        _print_json(result.to_json())
    elif result.error is None:
        print(f"{'NG' if result.abnormal else 'OK'}  {result.score:<10.4g}  {_printable(result.path)}", flush=True)
    if result.error is not None:
        _note(f"skipped {result.path}: {result.error}")


def _note(text: str) -> None:
    print(f"metalad: {_printable(text)}", file=sys.stderr)


# What a user is told when it fails.


def _explain(error: BaseException) -> int:
    """Say in one line what went wrong, and return the exit code."""
    if os.environ.get("METALAD_TRACEBACK") == "1":
        traceback.print_exception(error)
    _discard_unwritable_output()
    if isinstance(error, BrokenPipeError):
        return PIPE_CLOSED
    if isinstance(error, KeyboardInterrupt):
        _note("interrupted; nothing is half-written, and `train --resume` goes on where it stopped")
        return INTERRUPTED
    line = _one_line(error)
    if line is None:
        traceback.print_exception(error)
        _note("this is a bug in metalad; please report it with the lines above")
        return BUG
    _note(f"error: {line}")
    return error.exit_code if isinstance(error, MetaladError) else BAD_INPUT


def _one_line(error: BaseException) -> str | None:
    if isinstance(error, MetaladError):
        return str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _names_memory(str(error))):
        return "not enough memory; close other programs, or take smaller images or batches"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}{REMEDIES.get(error.errno or 0, '')}"
    return None


def _names_memory(text: str) -> bool:
    # torch.OutOfMemoryError is a RuntimeError, and so is what its CPU allocator raises; torch may not be imported.
    return any(words in text.lower() for words in ("out of memory", "not enough memory", "can't allocate memory"))


def _discard_unwritable_output() -> None:
    """Point a stdout that takes no more at nothing, lest the interpreter's last flush fails a second time."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _survive_odd_file_names() -> None:
    """Print a file name that is not UTF-8, or not in the terminal's alphabet, with escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _printable(text: object) -> str:
    # A file name reaches the terminal: no escape sequence may hide in one. Lone surrogates are escaped on output.
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else "?" for c in str(text))
