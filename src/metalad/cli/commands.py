"""The commands: each calls the public function of the same name, and prints what it returns.

`metalad` imports its functions when they are used, so that `--help` does not import torch.
"""

import contextlib
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import metalad
from metalad.cli.terminal import note, print_json
from metalad.runtime.errors import printable

if TYPE_CHECKING:
    from metalad import Report, SavedPrediction

ANOMALOUS_FOUND = 1
INCOMPLETE = 1

NOT_PASSED_ON = {"command", "version", "json", "quiet", "set", "fail_on_anomalous"}
"""Options that only the command line has; all others are keywords of the public function."""


def keywords(options: Namespace) -> dict[str, Any]:
    """Return the options that are keywords of the command's function."""
    passed_on = {name: value for name, value in vars(options).items() if name not in NOT_PASSED_ON}
    return passed_on | {"progress": not options.quiet}


def train(options: Namespace) -> int:
    """Run `metalad train`."""
    from metalad.runtime.tasks import rank

    given = keywords(options)
    model = metalad.train(**given, **_settings(options, given))
    if rank():  # of the processes that `torchrun` started, the first one alone prints
        return 0
    header = model.header
    scoring = header.config["scoring"]
    if options.json:
        caution = model.caution()
        values = {"model": str(model.path), "scoring": scoring, "caution": asdict(caution) if caution else None}
        print_json({**values, **header.to_dict()})
    else:
        if caution := model.caution():
            print(caution)
        print(f"{model.path}: {model.method}, trained on {model.images} good images")
        print(f"threshold {header.thresholds[scoring]:.4g} ({scoring}), for {header.false_alarms:.3g} false alarms")
    return 0


def evaluate(options: Namespace) -> int:
    """Run `metalad evaluate`."""
    given = keywords(options)
    run = Path(options.model)
    out = options.out or (run if run.is_dir() else run.parent) / "evaluation"
    report = metalad.evaluate(**given | {"out": out})
    _print_report(report, out / "report.html", as_json=options.json)
    return 0


def predict(options: Namespace) -> int:
    """Run `metalad predict`.

    Raises:
        DataError: no image could be scored; their results are written and printed before.
    """
    inferred = anomalous = unreadable = 0
    first: SavedPrediction | None = None
    # On a terminal the results themselves show the progress; a bar would run into them.
    progress = not options.quiet and not sys.stdout.isatty()
    with contextlib.closing(metalad.predict(**keywords(options) | {"progress": progress})) as results:
        for result in results:
            inferred += result.error is None
            unreadable += result.error is not None
            anomalous += bool(result.is_anomalous)
            first = first or result
            _print_prediction(result, as_json=options.json)
    if first is not None and not inferred:
        raise metalad.DataError(
            f"none of {unreadable} images could be scored; the first, {first.path}: {first.error}; "
            f"results in {options.out}"
        )
    if not options.quiet:
        skipped = f", {unreadable} unreadable" if unreadable else ""
        note(f"{anomalous} of {inferred} images anomalous{skipped}; written to {options.out}")
    return ANOMALOUS_FOUND if options.fail_on_anomalous and anomalous else 0


def serve(options: Namespace) -> int:
    """Run `metalad serve`."""
    given = keywords(options)
    del given["progress"]
    metalad.serve(**given)
    return 0


def compare(options: Namespace) -> int:
    """Run `metalad compare`."""
    from metalad.results.comparison import comparison_table

    comparison = metalad.compare(**keywords(options))
    if options.json:
        print_json({**comparison.to_json(), "page": str(options.out)})
    else:
        print(f"{comparison_table(comparison)}\npage: {options.out}")
    return 0


def methods(options: Namespace) -> int:
    """Run `metalad methods`."""
    if options.name is None:
        # `list_methods` imports all methods for their settings, and torch with them.
        from metalad.methods import methods as registered

        found = registered().values()
        if options.json:
            print_json([{"name": method.name, "summary": method.summary} for method in found])
        else:
            _print_columns([(method.name, method.summary) for method in found])
        return 0
    (method,) = metalad.list_methods(options.name)
    if options.json:
        print_json(asdict(method))
    else:
        print(f"{method.name}: {method.summary}\n")
        _print_columns([(f"{setting.name}={setting.default}", setting.help) for setting in method.settings])
    return 0


def datasets(options: Namespace) -> int:
    """Run `metalad datasets`."""
    found = metalad.datasets(options.name, options.data)
    if options.json:
        values = [copy.to_json() for copy in found]
        print_json(values if options.name is None else values[0])
    else:
        for copy in found:
            print("\n".join(map(printable, copy.text().splitlines())))
    return 0 if all(copy.is_whole for copy in found) else INCOMPLETE


def demo(options: Namespace) -> int:
    """Run `metalad demo`."""
    report = metalad.demo(**keywords(options))
    _print_report(report, options.out / "evaluation" / "report.html", as_json=options.json)
    return 0


def _settings(options: Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """Return the texts of `--set NAME=VALUE` by name; the public functions parse them."""
    settings: dict[str, Any] = {}
    for text in options.set:
        name, separator, value = text.partition("=")
        if not separator:
            raise metalad.ConfigError(f"setting {text!r} has no value; write NAME=VALUE")
        if name in given:
            raise metalad.ConfigError(f"{name} is no setting of a method; write --{name.replace('_', '-')} {value}")
        settings[name] = value
    return settings


def _print_report(report: "Report", page: Path, *, as_json: bool) -> None:
    from metalad.results.report_text import report_table

    if as_json:
        print_json({**report.flat(), "report": str(page)})
    else:
        print(f"{report_table(report)}\nreport: {page}")


def _print_prediction(result: "SavedPrediction", *, as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
    elif result.error is None:
        print(f"{'NG' if result.is_anomalous else 'OK'}  {result.score:<10.4g}  {printable(result.path)}", flush=True)
    if result.error is not None:
        note(f"skipped {result.path}: {result.error}")


def _print_columns(rows: list[tuple[str, str]]) -> None:
    width = max(len(left) for left, _ in rows)
    print("\n".join(f"{left:{width}}  {right}" for left, right in rows))
