"""The subcommand `metalad watch`: its options, its signals, and what it prints."""

import contextlib
import csv
import signal
import sys
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalad.cli.options import RATE, RUN
from metalad.cli.signature import add_parameters
from metalad.cli.terminal import INTERRUPTED, note, print_json
from metalad.runtime.errors import ConfigError, printable

if TYPE_CHECKING:
    from metalad.results.logged import LoggedPrediction

INTO_OUT = "\0"
"""The value of `--move` without a folder."""
OWN_OPTIONS = {"command", "version", "json", "quiet", "results", "csv"}
COLUMNS = ("id", "time", "path", "score", "threshold", "is_anomalous", "error", "overlay", "sha256", "moved_to")


def add_watch_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad watch`."""
    add_parameters(
        parser,
        "pipelines/watch/run.py",
        "watch",
        positional=("model", "source"),
        skip=("stop",),
        overrides={
            "model": {**RUN, "nargs": "?"},
            "source": {"metavar": "SOURCE", "type": str, "nargs": "?"},
            "out": {"metavar": "DIR", "required": False},
            "settle": {"metavar": "SECONDS"},
            "patience": {"metavar": "SECONDS"},
            "poll": {"metavar": "SECONDS"},
            "on_anomalous": {"metavar": "COMMAND"},
            "command_timeout": {"metavar": "SECONDS"},
            "mqtt": {"metavar": "URL"},
            "move": {
                "metavar": "DIR",
                "nargs": "?",
                "const": INTO_OUT,
                "type": str,
                "help": "move each scored file into DIR/ok or DIR/ng, and write frames there; --out by default",
            },
            "false_alarms": RATE,
        },
    )
    parser.add_argument(
        "--results", metavar="DIR", type=Path, help="print the results that are stored in DIR, and score nothing"
    )
    parser.add_argument("--csv", action="store_true", help="with --results: print CSV, a row for each image")
    parser.add_argument("--json", action="store_true", help="print each result as a JSON object a line")
    parser.add_argument("--quiet", action="store_true", help="print no notes, only warnings")


def run_watch(options: Namespace) -> int:
    """Run `metalad watch` and return its exit code: 0, also after a request to end; after Ctrl-C 130.

    Raises:
        MetaladError: see `metalad.watch`.
    """
    if options.results is not None:
        return _print_results(options)
    for name, value in (("RUN", options.model), ("SOURCE", options.source), ("--out DIR", options.out)):
        if value is None:
            raise ConfigError(f"watch needs {name}; write `metalad watch RUN FOLDER --out DIR`")
    if options.csv:
        raise ConfigError("--csv is for --results DIR; while images arrive, use --json")
    import metalad

    given: dict[str, Any] = {name: value for name, value in vars(options).items() if name not in OWN_OPTIONS}
    if options.move == INTO_OUT:
        given["move"] = options.out
    scored = anomalous = 0
    with _stopped_by_signals() as stop:
        with contextlib.closing(metalad.watch(**given, stop=stop.event)) as results:
            for result in results:
                scored += result.error is None
                anomalous += bool(result.is_anomalous)
                _print_result(result, as_json=options.json)
        if not options.quiet:
            why = "stopped: " if stop.event.is_set() else ""
            note(f"{why}{anomalous} of {scored} images anomalous; results in {options.out}")
    return INTERRUPTED if stop.signal == signal.SIGINT else 0


class _Stop:
    """A request to stop, and the signal that made it."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal: int | None = None

    def receive(self, number: int, _frame: object) -> None:
        """Request to stop; the second time, interrupt."""
        if self.event.is_set():
            raise KeyboardInterrupt
        self.signal = number
        self.event.set()


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[_Stop]:
    """Let Ctrl-C and SIGTERM stop after the images in work, while this context lasts."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        yield stop
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_result(result: "LoggedPrediction", *, as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
    elif result.error is None:
        verdict = "NG" if result.is_anomalous else "OK"
        print(f"{verdict}  {result.score:<10.4g}  {printable(result.path)}", flush=True)
    if result.error is not None:
        note(f"cannot score {result.path}: {result.error}")


def _print_results(options: Namespace) -> int:
    from metalad.pipelines.watch.stored import stored_results

    if options.csv and options.json:
        raise ConfigError("--csv and --json exclude each other; choose one")
    results = stored_results(options.results)
    if options.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow((*COLUMNS, "regions"))
        for result in results:
            values = {"error": None, **result.to_dict()}
            cells = [values.get(name) for name in COLUMNS]
            writer.writerow([*map(_cell, cells), len(result.regions)])
        return 0
    for result in results:
        _print_result(result, as_json=options.json)
    return 0


def _cell(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value
