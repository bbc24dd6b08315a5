"""The command line of the harness: run a suite, list suites or cells, verify a row, or regenerate tables."""

import argparse
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.declaration import Suite
from benchmarks.harness.suite_run import RESULTS, SuiteOutcome, is_done, known_rows, locate, run_suite
from benchmarks.harness.suites import suite_named, suites
from metalad.cli.terminal import explain
from metalad.pipelines.benchmark.cells import Cell
from metalad.runtime.errors import ConfigError, printable

FAILED = 1

EPILOG = """exits with 1 if a cell failed or a verified row does not hold.

examples:
  python -m benchmarks
  python -m benchmarks default --data datasets
  python -m benchmarks default --data datasets --verify 1
  python -m benchmarks --tables"""


@dataclass(frozen=True)
class Answer:
    """What a command prints, as text and as JSON values, and its exit code."""

    text: str
    json: Any
    exit_code: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (by default that of the process) and return its exit code.

    Raises:
        SystemExit: argparse printed the help (0) or an error in the arguments (2).
    """
    options = build_parser().parse_args(arguments)
    try:
        answer = run_command(options)
        text = json.dumps(answer.json, allow_nan=False) if options.json else answer.text
        print("\n".join(map(printable, text.splitlines())), flush=True)
    except (Exception, KeyboardInterrupt) as error:
        return explain(error)
    return answer.exit_code


def build_parser() -> ArgumentParser:
    """Return the parser; names and defaults are those of `run_suite`."""
    parser = ArgumentParser(
        prog="python -m benchmarks",
        description="Run a suite of experiments and record a row per cell.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("suite", metavar="SUITE", nargs="?", help="the suite to run; without it, the suites are listed")
    parser.add_argument("--data", metavar="ROOT", type=Path, help="the folder that contains the categories")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=RESULTS,
        help="folder of rows DIR/SUITE.jsonl; %(default)s by default",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        nargs="+",
        action="extend",
        default=[],
        help="run only these cells: beginnings of keys, or patterns for names such as 'bottle:*'",
    )
    parser.add_argument(
        "--protocol",
        choices=("default", "paper"),
        help="paper: the cells trained as published, however long; by default those trained with the default protocol",
    )
    parser.add_argument("--list", dest="listing", action="store_true", help="list the cells and run nothing")
    parser.add_argument("--verify", metavar="ROW", help="run the cell of a row again (line number or key) and compare")
    parser.add_argument("--tables", action="store_true", help="regenerate the tables in README.md, docs and benchmarks")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="run N cells at once, each in its own process; else one after the other",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="local",
        help="run the cells on a Ray cluster, by default a local one",
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, default=2, help="torch threads per cell; %(default)s by default"
    )
    parser.add_argument(
        "--memory", metavar="GIB", type=float, default=3.0, help="memory per cell on Ray; %(default)s by default"
    )
    parser.add_argument("--device", metavar="NAME", default="auto", help="cpu, cuda or auto; %(default)s by default")
    parser.add_argument("--keep", action="store_true", help="keep the work folders of finished cells")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on stdout")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    return parser


def run_command(options: Namespace) -> Answer:
    """Run what the options ask for.

    Raises:
        MetaladError: an argument is invalid, or rows cannot be read or written.
    """
    if options.tables:
        return _regenerate(options.out)
    if options.suite is None:
        return _suites()
    if options.listing:
        return _list(suite_named(options.suite), options)
    if options.verify is not None:
        return _verify(options)
    commands = ("listing", "verify", "tables", "json", "quiet")
    keywords = {name: value for name, value in vars(options).items() if name not in commands}
    return _outcome(run_suite(**keywords, progress=not options.quiet))


def _regenerate(results: Path) -> Answer:
    from benchmarks.harness.pages import write_tables

    if not Path("README.md").is_file():
        raise ConfigError(f"no README.md in {Path.cwd()}; run this in the checkout whose tables are to be regenerated")
    pages = [str(page) for page in write_tables(Path(), results)]
    return Answer("\n".join(f"regenerated {page}" for page in pages) or "all tables agree with the rows", pages)


def _suites() -> Answer:
    every = suites().values()
    width = max(len(suite.name) for suite in every)
    return Answer(
        "\n".join(f"{suite.name:{width}}  {len(suite.cells()):3} cells: {suite.summary}" for suite in every),
        [{"name": suite.name, "cells": len(suite.cells()), "summary": suite.summary} for suite in every],
    )


def _list(suite: Suite, options: Namespace) -> Answer:
    cells = suite.selected(options.only, options.protocol)
    rows = known_rows(options.out, suite)
    folders = locate(suite, cells, options.data) if options.data else {}
    absent = {name for name, folder in folders.items() if folder.path is None}

    def state(cell: Cell) -> str:
        if is_done(suite, cell, rows, options.out):
            return "done"
        return "absent" if cell.category in absent else "to do"

    return Answer(
        "\n".join(
            [*(f"{cell.key}  {state(cell):6}  {cell.name}{_training(cell)}" for cell in cells), f"{len(cells)} cells"]
        ),
        [
            {
                "key": cell.key,
                "name": cell.name,
                "state": state(cell),
                "method": cell.configuration.method,
                "settings": cell.configuration.settings,
                "category": cell.category,
                "seed": cell.seed,
                "protocol": cell.protocol,
                "epochs": cell.epochs,
            }
            for cell in cells
        ],
    )


def _training(cell: Cell) -> str:
    epochs = "" if cell.epochs is None else f", {cell.epochs} epochs"
    return "" if cell.category is None else f"  ({cell.protocol} protocol{epochs})"


def _verify(options: Namespace) -> Answer:
    from benchmarks.harness.verify import verify

    verification = verify(options.suite, options.verify, options.data, out=options.out, progress=not options.quiet)
    return Answer(verification.text(), verification.to_json(), 0 if verification.holds else FAILED)


def _outcome(outcome: SuiteOutcome) -> Answer:
    lines = [
        f"{outcome.suite}: {len(outcome.done)} cells done, {len(outcome.done_before)} done before, "
        f"{len(outcome.failed)} failed, {len(outcome.absent)} absent"
    ]
    lines += [f"failed  {cell.key} {cell.name}: {reason}" for cell, reason in outcome.failed]
    reasons = {folder.category: folder.reason for _, folder in outcome.absent}
    lines += [f"absent  {category}: {reason}" for category, reason in reasons.items()]
    if outcome.done or outcome.done_before:
        lines.append(f"rows: {outcome.results}")
    if outcome.picture is not None:
        lines.append(f"picture: {outcome.picture}")
    return Answer("\n".join(lines), outcome.to_json(), FAILED if outcome.failed else 0)
