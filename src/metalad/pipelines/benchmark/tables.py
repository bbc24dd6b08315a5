"""Make tables of rows, and put them into Markdown between `<!-- table: SUITE -->` and `<!-- end table -->`.

`python -m metalad.pipelines.benchmark.tables` says which tables in README.md and docs have drifted from the rows and exits
with 1 if any has; `--write` renews them. Nobody types a number.
"""

import argparse
import itertools
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalad.methods import methods
from metalad.pipelines.benchmark.declaration import Configuration, ScoringName, Suite
from metalad.pipelines.benchmark.paper import TABLES, Published
from metalad.pipelines.benchmark.rows import Row
from metalad.pipelines.benchmark.run import RESULTS, known_rows
from metalad.pipelines.benchmark.studies import FOLDER, PREFIX, read_study, study_cells, study_origin, study_path
from metalad.pipelines.benchmark.suites import suites
from metalad.runtime.errors import ConfigError, MetaladError, RunError
from metalad.runtime.files import write_text

BLOCK = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end table -->)", re.DOTALL)
OPENING = re.compile(r"^<!-- table: ", re.MULTILINE)
SUITES = "suites"
DEFECTS = "defects:"
"""Before a suite's name: its rows by kind of defect."""
WIDTH = 116
NOTHING = "–"


@dataclass(frozen=True)
class Line:
    """One line of a table: the rows of one configuration on one category, which differ in their seeds."""

    category: str
    label: str
    protocol: str
    scoring: ScoringName
    rows: tuple[Row, ...]
    paper: Published | None

    def values(self, metric: str, defect: str | None = None) -> list[float]:
        """Return a metric at the model's resolution from each row that has it, of all defects or of one kind.

        A pixel metric of a method whose paper has no anomaly map would measure ours: it has none.
        """
        if metric.startswith("pixel_") and any(_image_level(row.method) for row in self.rows):
            return []
        measured = [row.metrics[self.scoring] for row in self.rows] if defect is None else self._of(defect)
        found = [each["model"][metric] for each in measured]
        return [value for value in found if value is not None]

    def defects(self) -> list[str]:
        """Return the kinds of defect that were judged."""
        return list(dict.fromkeys(kind for row in self.rows for kind in row.metrics[self.scoring]["per_defect"]))

    def found(self, defect: str) -> str:
        """Return how many of a kind exceeded the threshold, row by row, and of how many."""
        each = self._of(defect)
        found = ", ".join(str(one["found"]) for one in each)
        images = ", ".join(str(count) for count in sorted({one["images"] for one in each}))
        return f"{found} of {images}" if each else NOTHING

    def _of(self, defect: str) -> list[Mapping[str, Any]]:
        kinds = [row.metrics[self.scoring]["per_defect"] for row in self.rows]
        return [each[defect] for each in kinds if defect in each]

    def percents(self, metric: str) -> list[float]:
        """Return the same in percent."""
        return [100 * value for value in self.values(metric)]

    def millions(self) -> list[float]:
        """Return the numbers of parameters."""
        return [row.parameters / 1e6 for row in self.rows]

    def seconds(self) -> list[float]:
        """Return what training and evaluating took; without the rows of a GPU, if a CPU made any."""
        rows = [row for row in self.rows if row.device == "cpu"] or self.rows
        return [row.cost["train_seconds"] + row.cost["evaluate_seconds"] for row in rows]


def render(suite: Suite, rows: Mapping[str, Row]) -> str:
    """Return the Markdown of a suite's table; what has no row has an empty line.

    Args:
        suite: its declaration, which gives the order of the lines.
        rows: by key; those of cells that are no longer declared are left out, and counted below the table.

    Raises:
        RunError: rows that would be averaged differ in more than their seed.
    """
    both = len({cell.protocol for cell in suite.cells()}) > 1
    columns = [column for column in COLUMNS[suite.table] if both or column != _TRAINED]
    lines = [[column(line) for _, column in columns] for line in _lines(suite, rows)]
    return f"{_markdown([title for title, _ in columns], lines)}\n{_caption(suite, rows, suite.table)}\n"


def render_defects(suite: Suite, rows: Mapping[str, Row]) -> str:
    """Return the Markdown of how each kind of defect fares by the scoring that a configuration judges by.

    Raises:
        RunError: as `render`.
    """
    cells = []
    lines = [line for line in _lines(suite, rows) if line.rows and line.scoring == line.rows[0].config["scoring"]]
    for category, group in itertools.groupby(lines, key=lambda line: line.category):
        alike = list(group)
        for defect in dict.fromkeys(kind for line in alike for kind in line.defects()):
            cells += [[category, defect, *(column(line, defect) for _, column in DEFECT_COLUMNS)] for line in alike]
    header = ["category", "defect", *(title for title, _ in DEFECT_COLUMNS)]
    return f"{_markdown(header, cells)}\n{_caption(suite, rows, DEFECTS)}\n"


def render_suites() -> str:
    """Return the Markdown of the list of suites."""
    lines = [[f"`{suite.name}`", suite.summary] for suite in suites().values()]
    return _markdown(["suite", "what it measures"], lines)


def fill(text: str, results: Path, where: str) -> str:
    """Return a page with each of its tables made anew from the rows in `results`.

    Args:
        text: the page; a block named `suites` gets the list of suites, one named `study:NAME` a study's findings, one
            named `defects:SUITE` a suite's rows by kind of defect.
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
        if name.startswith(PREFIX):
            return f"{block[1]}{_render_study(results, name.removeprefix(PREFIX), where)}{block[4]}"
        made, name = (render_defects, name.removeprefix(DEFECTS)) if name.startswith(DEFECTS) else (render, name)
        if name not in suites():
            raise ConfigError(f"{where}: a table of {name!r}, which is no suite; there are: {', '.join(suites())}")
        return f"{block[1]}{made(suites()[name], known_rows(results, suites()[name]))}{block[4]}"

    return BLOCK.sub(renewed, text)


def _render_study(results: Path, name: str, where: str) -> str:
    findings = read_study(results, name)
    if not findings:
        raise ConfigError(f"{where}: a table of the study {name!r}, but there is no {study_path(results, name)}")
    header, *lines = study_cells(findings)
    origin = _wrapped(f"`{FOLDER}/{name}.jsonl`; {study_origin(findings)}.")
    return f"{_markdown(header, lines)}\n{origin}\n"


def perturbed(root: Path, results: Path) -> dict[Path, str]:
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
    changed = perturbed(root, results)
    for page, text in changed.items():
        write_text(page, text)
    return list(changed)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(line) + " |\n" for line in (header, ["---"] * len(header), *lines))


def _lines(suite: Suite, rows: Mapping[str, Row]) -> Iterator[Line]:
    """Yield the lines in the order of declaration; what has no row gets one line a category."""
    groups: dict[str, dict[tuple[Configuration, str], list[Row]]] = {}
    for cell in suite.cells():
        group = groups.setdefault(cell.category or "", {}).setdefault((cell.configuration, cell.protocol), [])
        if cell.key in rows:
            group.append(rows[cell.key])
    for category, configurations in groups.items():
        if len(configurations) > 1 and not any(configurations.values()):
            yield Line(category, "all", "", suite.scorings[0], (), None)
            continue
        for (configuration, protocol), found in configurations.items():
            if not found:
                continue
            _see_that_only_seeds_differ(suite, category, configuration, found)
            paper = _paper(suite, configuration, category)
            for scoring in suite.scorings if suite.table != "parameters" else suite.scorings[:1]:
                yield Line(category, configuration.label, protocol, scoring, tuple(found), paper)
        measured = {configuration for (configuration, _), found in configurations.items() if found}
        missing = dict.fromkeys(name.label for name, _ in configurations if name not in measured)
        if missing:
            yield Line(category, f"not run: {', '.join(missing)}", "", suite.scorings[0], (), None)


def _see_that_only_seeds_differ(suite: Suite, category: str, configuration: Configuration, rows: list[Row]) -> None:
    def same(row: Row, other: Row) -> bool:
        # A setting that is younger than one of the rows had its default then.
        both = row.config.keys() & other.config.keys()
        same_settings = all(row.config[name] == other.config[name] for name in both)
        return same_settings and row.data.get("all") == other.data.get("all")

    if not all(same(row, rows[0]) for row in rows):
        raise RunError(
            f"suite {suite.name}: the rows of {category}, {configuration.label} differ in settings or images, not in "
            "their seed alone; remove the lines of the older ones to run their cells again"
        )


def _paper(suite: Suite, configuration: Configuration, category: str) -> Published | None:
    if suite.paper_table is None or configuration.paper is None:
        return None
    return TABLES[suite.paper_table].number(category.rpartition("/")[2] or "parameters", configuration.paper)


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return NOTHING
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _published(paper: Published | None, digits: int) -> str:
    if paper is None:
        return NOTHING
    return f"{paper.value:.{digits}f}" + ("" if paper.spread is None else f" ± {paper.spread:.{digits}f}")


def _difference(values: Sequence[float], paper: Published | None, digits: int) -> str:
    return NOTHING if paper is None or not values else f"{statistics.mean(values) - paper.value:+.{digits}f}"


def _caption(suite: Suite, rows: Mapping[str, Row], legend: str) -> str:
    keys = {cell.key for cell in suite.cells()}
    used = [row for key, row in rows.items() if key in keys]
    if not used:
        return f"No rows yet: `metalad benchmark {suite.name} --data ROOT`."
    parts = [f"{len(used)} of {len(keys)} cells, `{suite.name}.jsonl`"]
    parts += sorted({_commit(row) for row in used})
    parts += sorted({f"torch {row.versions['torch']}" for row in used})
    parts += sorted({_machine(row) for row in used})
    if len(rows) > len(used):
        parts.append(f"{len(rows) - len(used)} rows of cells that are declared no more")
    return _wrapped(f"{LEGENDS[legend]}{'; '.join(parts)}.")


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, break_on_hyphens=False))  # a commit's `-dirty` stays with it


def _image_level(method: str) -> bool:
    return method in methods() and methods()[method].image_level


def _commit(row: Row) -> str:
    if row.commit is None:
        return "commit unknown"
    return f"commit {row.commit[:8]}{'-dirty' * row.commit.endswith('-dirty')}"


def _machine(row: Row) -> str:
    what = row.machine["gpu"] or row.machine["cpu"]
    return f"{what}, {row.threads} threads of {row.machine['cores']}" + (
        f", {row.training['precision']}" if "precision" in row.training else ""
    )


Column = tuple[str, Callable[[Line], str]]

_TRAINED: Column = ("trained", lambda line: {"paper": "as published", "default": "default"}.get(line.protocol, NOTHING))
"""In suites that have both protocols."""

_WHAT: tuple[Column, ...] = (
    ("category", lambda line: line.category),
    ("configuration", lambda line: line.label),
    _TRAINED,
    ("score", lambda line: line.scoring if line.rows else NOTHING),
    ("seeds", lambda line: str(len(line.rows)) if line.rows else NOTHING),
)
_SECONDS: Column = ("s", lambda line: f"{statistics.mean(line.seconds()):.0f}" if line.rows else NOTHING)

COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "pixel": (
        *_WHAT,
        ("to 0.3", lambda line: _mean(line.values("pixel_auroc_fpr30"), 3)),
        ("full", lambda line: _mean(line.values("pixel_auroc"), 3)),
        ("image", lambda line: _mean(line.values("image_auroc"), 3)),
        ("paper", lambda line: _published(line.paper, 3)),
        ("Δ to 0.3", lambda line: _difference(line.values("pixel_auroc_fpr30"), line.paper, 3)),
        ("Δ full", lambda line: _difference(line.values("pixel_auroc"), line.paper, 3)),
        _SECONDS,
    ),
    "image": (
        *_WHAT,
        ("image, %", lambda line: _mean(line.percents("image_auroc"), 2)),
        ("paper", lambda line: _published(line.paper, 2)),
        ("Δ", lambda line: _difference(line.percents("image_auroc"), line.paper, 2)),
        _SECONDS,
    ),
    "parameters": (
        ("configuration", lambda line: line.label),
        ("parameters, millions", lambda line: _mean(line.millions(), 2)),
        ("paper", lambda line: _published(line.paper, 1)),
        ("Δ", lambda line: _difference(line.millions(), line.paper, 2)),
    ),
}


DEFECT_COLUMNS: tuple[tuple[str, Callable[[Line, str], str]], ...] = (
    ("configuration", lambda line, _: f"{line.label}{', as published' * (line.protocol == 'paper')}"),
    ("found", Line.found),
    ("AUPRO", lambda line, defect: _mean(line.values("pixel_aupro", defect), 3)),
    ("AP", lambda line, defect: _mean(line.values("pixel_ap", defect), 3)),
    ("to 0.3", lambda line, defect: _mean(line.values("pixel_auroc_fpr30", defect), 3)),
    ("image", lambda line, defect: _mean(line.values("image_auroc", defect), 3)),
)

_COMMON = (
    "Mean ± standard deviation over seeds; Δ: less the paper's number; s: seconds to train and evaluate, a GPU's "
    "only where no CPU did any. Rows: "
)

LEGENDS: Mapping[str, str] = {
    "pixel": "*to 0.3*, *full*: pixel AUROC up to a false-positive rate of 0.3, divided by 0.3, and in full, at the "
    "model's resolution; the paper's number is compared with both, as it may be either. Methods whose papers judge "
    "whole images have none. *image*: image AUROC. " + _COMMON,
    "image": "*image*: image AUROC. " + _COMMON,
    "parameters": "Δ: less the paper's number. Rows: ",
    DEFECTS: "Each kind is measured on its own images and the good ones. *found*: abnormal images above the threshold "
    "for 1 % false alarms, seed by seed. *AUPRO*, *AP*: region overlap and average precision of pixels; *to 0.3*: "
    "pixel AUROC up to a false-positive rate of 0.3; all at the model's resolution. *image*: image AUROC. "
    "Mean ± standard deviation over seeds. Rows: ",
}


def main() -> int:
    """Say which tables have drifted, or renew them; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m metalad.pipelines.benchmark.tables", description="Tables of rows.")
    parser.add_argument("--write", action="store_true", help="renew the tables; else only say which have drifted")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout; the working folder by default")
    parser.add_argument("--results", type=Path, help="the folder of rows; ROOT/benchmarks/results by default")
    options = parser.parse_args()
    results = options.results or options.root / RESULTS
    try:
        pages = write_tables(options.root, results) if options.write else perturbed(options.root, results)
    except MetaladError as error:
        print(f"metalad: error: {error}", file=sys.stderr)
        return error.exit_code
    for page in pages:
        print(f"{page}: {'renewed' if options.write else 'drifted; renew it by --write'}")
    return int(bool(pages) and not options.write)


if __name__ == "__main__":
    sys.exit(main())
