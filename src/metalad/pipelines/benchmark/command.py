"""What the subcommand answers: run a suite, list suites or cells, verify a row, or renew tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalad.pipelines.benchmark.declaration import Cell, Protocol, Suite
from metalad.pipelines.benchmark.run import Outcome, benchmark, is_done, known_rows, locate
from metalad.pipelines.benchmark.suites import suite_named, suites
from metalad.runtime.errors import ConfigError

FAILED = 1


@dataclass(frozen=True)
class Answer:
    """The same answer as text and as JSON, and the exit code."""

    text: str
    json: Any
    exit_code: int = 0


def answer(*, listing: bool, tables: bool, verify: str | None, **keywords: Any) -> Answer:
    """Do what was asked for; the keywords are those of `benchmark`.

    Raises:
        MetaladError: whatever that raises.
    """
    if tables:
        return _renew(keywords["out"])
    if keywords["suite"] is None:
        return _suites()
    if listing:
        return _list(
            suite_named(keywords["suite"]), keywords["out"], keywords["data"], keywords["only"], keywords["protocol"]
        )
    if verify is not None:
        return _verify(verify, **{name: keywords[name] for name in ("suite", "data", "out", "progress")})
    return _run(benchmark(**keywords))


def _renew(results: Path) -> Answer:
    from metalad.pipelines.benchmark.tables import write_tables

    if not Path("README.md").is_file():
        raise ConfigError(f"no README.md in {Path.cwd()}; call it in the checkout whose tables are to be renewed")
    pages = [str(page) for page in write_tables(Path(), results)]
    return Answer("\n".join(f"renewed {page}" for page in pages) or "all tables are as the rows have them", pages)


def _suites() -> Answer:
    every = suites().values()
    width = max(len(suite.name) for suite in every)
    return Answer(
        "\n".join(f"{suite.name:{width}}  {len(suite.cells()):3} cells: {suite.summary}" for suite in every),
        [{"name": suite.name, "cells": len(suite.cells()), "summary": suite.summary} for suite in every],
    )


def _list(suite: Suite, out: Path, data: Path | None, only: Sequence[str], protocol: Protocol | None) -> Answer:
    cells = suite.chosen(only, protocol)
    rows = known_rows(out, suite)
    absent = {name for name, place in locate(suite, cells, data).items() if place.path is None} if data else set()

    def state(cell: Cell) -> str:
        if is_done(suite, cell, rows, out):
            return "done"
        return "absent" if cell.category in absent else "to do"

    return Answer(
        "\n".join(f"{cell.key}  {state(cell):6}  {cell.name}{_how(cell)}" for cell in cells),
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


def _how(cell: Cell) -> str:
    epochs = "" if cell.epochs is None else f", {cell.epochs} epochs"
    return "" if cell.category is None else f"  ({cell.protocol} protocol{epochs})"


def _verify(row: str, **keywords: Any) -> Answer:
    from metalad.pipelines.benchmark.verify import verify

    found = verify(row=row, **keywords)
    return Answer(found.text(), found.to_json(), 0 if found.holds else FAILED)


def _run(outcome: Outcome) -> Answer:
    lines = [
        f"{outcome.suite}: {len(outcome.done)} cells done, {len(outcome.done_before)} done before, "
        f"{len(outcome.failed)} failed, {len(outcome.absent)} absent"
    ]
    lines += [f"failed  {cell.key} {cell.name}: {reason}" for cell, reason in outcome.failed]
    places = {place.category: place.reason for _, place in outcome.absent}
    lines += [f"absent  {category}: {reason}" for category, reason in places.items()]
    if outcome.done or outcome.done_before:
        lines.append(f"rows: {outcome.results}")
    if outcome.picture is not None:
        lines.append(f"picture: {outcome.picture}")
    return Answer("\n".join(lines), outcome.to_json(), FAILED if outcome.failed else 0)
