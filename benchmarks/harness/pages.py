"""Regenerate the tables in Markdown pages, between `<!-- table: SUITE -->` and `<!-- end table -->`."""

import re
from pathlib import Path

from benchmarks.harness.studies import FOLDER, PREFIX, read_study, study_cells, study_origin, study_path
from benchmarks.harness.suite_run import known_rows
from benchmarks.harness.suites import suites
from benchmarks.harness.tables import (
    comparison_table,
    defect_table,
    list_of_suites,
    markdown,
    suite_table,
    summary_table,
    wrapped,
)
from metalad.runtime.errors import ConfigError
from metalad.runtime.files import write_text

BLOCK = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end table -->)", re.DOTALL)
OPENING = re.compile(r"^<!-- table: ", re.MULTILINE)
SUITES = "suites"
DEFECTS = "defects:"
"""Prefix of a suite's name for its table by defect type."""
SUMMARY = "summary:"
"""Prefix of a suite's name for its short table."""
COMPARISON = "comparison:"
"""Prefix of a suite's name for its table of metrics, found defects and false alarms."""


def fill(text: str, results: Path, where: str) -> str:
    """Return a page with all of its tables regenerated from the rows in `results`.

    Args:
        text: the page; a block named `suites` contains the list of suites, `study:NAME` the findings of a study,
            `defects:SUITE` the table of a suite by defect type, `summary:SUITE` its short table,
            `comparison:SUITE` that of found defects and false alarms, and any other name the table of that suite.
        results: the folder of rows.
        where: the page's name in error messages.

    Raises:
        ConfigError: an unknown suite, or a block without an end. RunError: rows cannot be read or averaged.
    """
    if len(OPENING.findall(text)) != len(BLOCK.findall(text)):
        raise ConfigError(f"{where}: a line <!-- table: SUITE --> has no <!-- end table --> after it")

    def regenerated(block: re.Match[str]) -> str:
        name = block[2]
        if name == SUITES:
            return f"{block[1]}{list_of_suites()}{block[4]}"
        if name.startswith(PREFIX):
            return f"{block[1]}{_study_table(results, name.removeprefix(PREFIX), where)}{block[4]}"
        table = suite_table
        for prefix, other in ((DEFECTS, defect_table), (SUMMARY, summary_table), (COMPARISON, comparison_table)):
            if name.startswith(prefix):
                table, name = other, name.removeprefix(prefix)
        if name not in suites():
            raise ConfigError(f"{where}: there is no suite {name!r} for a table; there are: {', '.join(suites())}")
        return f"{block[1]}{table(suites()[name], known_rows(results, suites()[name]))}{block[4]}"

    return BLOCK.sub(regenerated, text)


def _study_table(results: Path, name: str, where: str) -> str:
    findings = read_study(results, name)
    if not findings:
        raise ConfigError(f"{where}: there is no file {study_path(results, name)} for the table of the study {name!r}")
    header, *lines = study_cells(findings)
    origin = wrapped(f"`{FOLDER}/{name}.jsonl`; {study_origin(findings)}.")
    return f"{markdown(header, lines)}\n{origin}\n"


def outdated_pages(root: Path, results: Path) -> dict[Path, str]:
    """Return the pages of a checkout whose tables differ from the rows, each with its regenerated text.

    Raises:
        ConfigError: a malformed block. RunError: rows cannot be read or averaged.
    """
    pages = (root / "README.md", root / "benchmarks" / "README.md", *sorted((root / "docs").rglob("*.md")))
    texts = {page: page.read_text(encoding="utf-8") for page in pages if page.is_file()}
    regenerated = {page: fill(text, results, str(page)) for page, text in texts.items()}
    return {page: text for page, text in regenerated.items() if text != texts[page]}


def write_tables(root: Path, results: Path) -> list[Path]:
    """Regenerate all tables of a checkout, and return the pages that changed.

    Raises:
        ConfigError: a malformed block. RunError: rows cannot be read or averaged, or a page cannot be written.
    """
    changed = outdated_pages(root, results)
    for page, text in changed.items():
        write_text(page, text)
    return list(changed)
