"""Make tables of rows, and put them into Markdown between `<!-- table: SUITE -->` and `<!-- end table -->`.

`python -m metalad.benchmark.tables` says which tables in README.md and docs have drifted from the rows and exits
with 1 if any has; `--write` renews them. Nobody types a number.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from metalad.benchmark.declaration import Configuration, Suite
from metalad.benchmark.paper import TABLES, Published
from metalad.benchmark.rows import Row, latest, read_rows
from metalad.benchmark.run import RESULTS
from metalad.benchmark.suites import suites
from metalad.errors import ConfigError, MetaladError, RunError
from metalad.files import write_text

BLOCK = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end table -->)", re.DOTALL)
OPENING = re.compile(r"^<!-- table: ", re.MULTILINE)
SUITES = "suites"
NOTHING = "–"

Group = tuple[str, Configuration, list[Row]]


def render(suite: Suite, rows: Mapping[str, Row]) -> str:
    """Return the Markdown of a suite's table, with an empty line for what has no row.

    Args:
        suite: its declaration, which gives the order of the lines.
        rows: by key; those of cells that are no longer declared are left out, and counted below the table.

    Raises:
        RunError: rows that would be averaged differ in more than their seed.
    """
    groups = _groups(suite, rows)
    header, lines = {"pixel": _pixel, "image": _image, "parameters": _parameters}[suite.table](suite, groups)
    table = [header, ["---"] * len(header), *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    return f"{text}\n\n{_caption(suite, rows)}\n"


def render_suites() -> str:
    """Return the Markdown of the list of suites."""
    lines = [["suite", "cells", "what it measures"], ["---"] * 3]
    lines += [[f"`{suite.name}`", str(len(suite.cells())), suite.summary] for suite in suites().values()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def fill(text: str, results: Path, where: str) -> str:
    """Return a page with each of its tables made anew from the rows in `results`.

    Args:
        text: the page; a block named `suites` gets the list of suites.
        results: the folder of rows.
        where: the page's name, for errors.

    Raises:
        ConfigError: a table of no suite, or a block without an end. RunError: rows that cannot be read or averaged.
    """
    if len(OPENING.findall(text)) != len(BLOCK.findall(text)):
        raise ConfigError(f"{where}: a line <!-- table: SUITE --> has no <!-- end table --> after it")

    def renewed(block: re.Match[str]) -> str:
        name = block[2]
        if name == SUITES:
            return f"{block[1]}{render_suites()}{block[4]}"
        if name not in suites():
            raise ConfigError(f"{where}: a table of {name!r}, which is no suite; there are: {', '.join(suites())}")
        return f"{block[1]}{render(suites()[name], latest(read_rows(results / f'{name}.jsonl')))}{block[4]}"

    return BLOCK.sub(renewed, text)


def drifted(root: Path, results: Path) -> dict[Path, str]:
    """Return the pages of a checkout whose tables differ from the rows, each with its text made anew.

    Raises:
        ConfigError: a malformed block. RunError: rows that cannot be read or averaged.
    """
    pages = [page for page in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if page.is_file()]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    renewed = {page: fill(text, results, str(page)) for page, text in texts.items()}
    return {page: text for page, text in renewed.items() if text != texts[page]}


def write_tables(root: Path, results: Path) -> list[Path]:
    """Renew all tables of a checkout, and return the pages that changed.

    Raises:
        ConfigError: a malformed block. RunError: rows that cannot be read or averaged, or a page not written.
    """
    changed = drifted(root, results)
    for page, text in changed.items():
        write_text(page, text)
    return list(changed)


def _groups(suite: Suite, rows: Mapping[str, Row]) -> list[Group]:
    """Return the rows of each category and configuration, in the order of their declaration."""
    groups: dict[tuple[str, str], Group] = {}
    for cell in suite.cells():
        category = cell.category or "parameters"
        group = groups.setdefault((category, cell.configuration.label), (category, cell.configuration, []))
        if cell.key in rows:
            group[2].append(rows[cell.key])
    for category, configuration, found in groups.values():
        if any(_sameness(row) != _sameness(found[0]) for row in found):
            raise RunError(
                f"suite {suite.name}: the rows of {category}, {configuration.label} differ in more than their seed "
                "(settings, protocol, epochs or images); remove the old ones to run their cells again"
            )
    return list(groups.values())


def _sameness(row: Row) -> tuple[object, ...]:
    return row.config, row.protocol, row.epochs, row.data.get("all")


def _pixel(suite: Suite, groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    header = ["category", "configuration", "score", "seeds", "AUROC to FPR 0.3", "full AUROC", "image AUROC"]
    header += ["paper", "Δ if it is to FPR 0.3", "Δ if it is full", "seconds"]
    lines = []
    for category, configuration, rows, scoring in _by_scoring(suite, groups, len(header)):
        if not rows:
            lines.append(_empty(header, category, configuration, _paper(suite, configuration, category)))
            continue
        paper = _paper(suite, configuration, category)
        truncated, full, image = (
            _values(rows, lambda row, name=name: row.metrics[scoring]["model"][name])  # type: ignore[misc]
            for name in ("pixel_auroc_fpr30", "pixel_auroc", "image_auroc")
        )
        lines.append(
            [
                category,
                configuration.label,
                scoring,
                str(len(rows)),
                *(_mean(values, 3) for values in (truncated, full, image)),
                _published(paper, 3),
                _difference(truncated, paper, 3),
                _difference(full, paper, 3),
                _seconds(rows),
            ]
        )
    return header, lines


def _image(suite: Suite, groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    header = ["category", "configuration", "score", "seeds", "image AUROC, %", "paper", "Δ", "seconds"]
    lines = []
    for category, configuration, rows, scoring in _by_scoring(suite, groups, len(header)):
        paper = _paper(suite, configuration, category)
        if not rows:
            lines.append(_empty(header, category, configuration, paper))
            continue
        values = [100 * value for value in _values(rows, lambda row: row.metrics[scoring]["model"]["image_auroc"])]
        lines.append(
            [
                category,
                configuration.label,
                scoring,
                str(len(rows)),
                _mean(values, 2),
                _published(paper, 2),
                _difference(values, paper, 2),
                _seconds(rows),
            ]
        )
    return header, lines
