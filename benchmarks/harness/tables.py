"""Make Markdown tables from the rows of a suite."""

import itertools
import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.declaration import ScoringName, Suite, paper_column
from benchmarks.harness.paper import TABLES, Published
from benchmarks.harness.suites import suites
from metalad.methods import methods
from metalad.pipelines.benchmark.cells import Configuration
from metalad.pipelines.benchmark.rows import ResultRow
from metalad.runtime.errors import RunError

WIDTH = 116
UNDEFINED = "–"
DEFECT_LEGEND = "defects"


@dataclass(frozen=True)
class Line:
    """One line of a table: the rows of one configuration on one category; only their seeds differ."""

    category: str
    label: str
    protocol: str
    scoring: ScoringName
    rows: tuple[ResultRow, ...]
    paper: Published | None

    def values(self, metric: str, defect: str | None = None) -> list[float]:
        """Return a metric at the model's resolution of each row that has it, for all defects or for one type.

        A pixel metric of an image-level method has no value: the anomaly map is not that of its paper.
        """
        if metric.startswith("pixel_") and any(_image_level(row.method) for row in self.rows):
            return []
        metrics = [row.metrics[self.scoring] for row in self.rows] if defect is None else self._of(defect)
        values = [each["model"][metric] for each in metrics]
        return [value for value in values if value is not None]

    def defects(self) -> list[str]:
        """Return the defect types of the test images."""
        return list(dict.fromkeys(name for row in self.rows for name in row.metrics[self.scoring]["per_defect"]))

    def found(self, defect: str) -> str:
        """Return for each row the number of images of a defect type above the threshold, and the number of images."""
        each = self._of(defect)
        found = ", ".join(str(one["found"]) for one in each)
        images = ", ".join(str(count) for count in sorted({one["images"] for one in each}))
        return f"{found} of {images}" if each else UNDEFINED

    def _of(self, defect: str) -> list[Mapping[str, Any]]:
        per_defect = [row.metrics[self.scoring]["per_defect"] for row in self.rows]
        return [each[defect] for each in per_defect if defect in each]

    def fractions(self, above: str, below: str) -> list[float]:
        """Return for each row the fraction of images above the threshold, from two entries of its confusion matrix."""
        counts = [row.metrics[self.scoring]["confusion"] for row in self.rows]
        return [each[above] / (each[above] + each[below]) for each in counts if each[above] + each[below]]

    def percents(self, metric: str) -> list[float]:
        """Return `values` in percent."""
        return [100 * value for value in self.values(metric)]

    def millions(self) -> list[float]:
        """Return the numbers of parameters in millions."""
        return [row.parameters / 1e6 for row in self.rows]

    def seconds(self) -> list[float]:
        """Return the seconds of training and evaluation, of the CPU rows only if there are any."""
        rows = [row for row in self.rows if row.device == "cpu"] or self.rows
        return [row.seconds for row in rows]


def suite_table(suite: Suite, rows: Mapping[str, ResultRow]) -> str:
    """Return a suite's table as Markdown; cells without rows are combined into empty lines.

    Args:
        suite: its cells give the order of the lines.
        rows: by key; rows of cells that are no longer declared are omitted, and counted below the table.

    Raises:
        RunError: rows to be averaged differ in more than their seed.
    """
    both = len({cell.protocol for cell in suite.cells()}) > 1
    columns = [column for column in COLUMNS[suite.table] if both or column != _TRAINED]
    lines = [[column(line) for _, column in columns] for line in _lines(suite, rows)]
    return f"{markdown([title for title, _ in columns], lines)}\n{_caption(suite, rows, suite.table)}\n"


def defect_table(suite: Suite, rows: Mapping[str, ResultRow]) -> str:
    """Return a suite's table by defect type as Markdown, for the scoring that each configuration uses by default.

    Raises:
        RunError: see `suite_table`.
    """
    cells = []
    lines = [line for line in _lines(suite, rows) if line.rows and line.scoring == line.rows[0].config["scoring"]]
    for category, group in itertools.groupby(lines, key=lambda line: line.category):
        category_lines = list(group)
        for defect in dict.fromkeys(name for line in category_lines for name in line.defects()):
            cells += [
                [category, defect, *(column(line, defect) for _, column in DEFECT_COLUMNS)] for line in category_lines
            ]
    header = ["category", "defect", *(title for title, _ in DEFECT_COLUMNS)]
    return f"{markdown(header, cells)}\n{_caption(suite, rows, DEFECT_LEGEND)}\n"


def summary_table(suite: Suite, rows: Mapping[str, ResultRow]) -> str:
    """Return a short table of a suite as Markdown, for the scoring that each configuration uses by default.

    Raises:
        RunError: see `suite_table`.
    """
    lines = [line for line in _lines(suite, rows) if line.rows and line.scoring == line.rows[0].config["scoring"]]
    cells = [[column(line) for _, column in SUMMARY_COLUMNS] for line in lines]
    return f"{markdown([title for title, _ in SUMMARY_COLUMNS], cells)}\n{_caption(suite, rows, SUMMARY_LEGEND)}\n"


def comparison_table(suite: Suite, rows: Mapping[str, ResultRow]) -> str:
    """Return a table of metrics, found defects and false alarms by category, and each configuration's means.

    Raises:
        RunError: see `suite_table`.
    """
    lines = [line for line in _lines(suite, rows) if line.rows and line.scoring == line.rows[0].config["scoring"]]
    cells = [[column(line) for _, column in COMPARISON_COLUMNS] for line in lines]
    for label in dict.fromkeys(line.label for line in lines):
        of_label = [line for line in lines if line.label == label]
        means = [_mean_of_means(of_label, values) for _, values in COMPARED]
        cells.append([f"mean of {len(of_label)}", label, *means, UNDEFINED])
    header = [title for title, _ in COMPARISON_COLUMNS]
    return f"{markdown(header, cells)}\n{_caption(suite, rows, COMPARISON_LEGEND)}\n"


def _mean_of_means(lines: Sequence[Line], values: Callable[[Line], list[float]]) -> str:
    means = [statistics.mean(found) for line in lines if (found := values(line))]
    return _mean([statistics.mean(means)], 3) if means else UNDEFINED


def list_of_suites() -> str:
    """Return the list of suites as Markdown."""
    lines = [[f"`{suite.name}`", suite.summary] for suite in suites().values()]
    return markdown(["suite", "content"], lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "".join("| " + " | ".join(line) + " |\n" for line in (header, ["---"] * len(header), *lines))


def _lines(suite: Suite, rows: Mapping[str, ResultRow]) -> Iterator[Line]:
    """Yield the lines in the order of declaration; the configurations without rows share one line per category."""
    groups: dict[str, dict[tuple[Configuration, str], list[ResultRow]]] = {}
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
            _check_only_seeds_differ(suite, category, configuration, found)
            paper = _paper(suite, configuration, category)
            for scoring in suite.scorings if suite.table != "parameters" else suite.scorings[:1]:
                yield Line(category, configuration.label, protocol, scoring, tuple(found), paper)
        measured = {configuration for (configuration, _), found in configurations.items() if found}
        missing = dict.fromkeys(name.label for name, _ in configurations if name not in measured)
        if missing:
            yield Line(category, f"not run: {', '.join(missing)}", "", suite.scorings[0], (), None)


def _check_only_seeds_differ(suite: Suite, category: str, configuration: Configuration, rows: list[ResultRow]) -> None:
    def same(row: ResultRow, other: ResultRow) -> bool:
        # A setting that was added after one of the rows had its default value then.
        both = row.config.keys() & other.config.keys()
        same_settings = all(row.config[name] == other.config[name] for name in both)
        return same_settings and row.data.get("all") == other.data.get("all")

    if not all(same(row, rows[0]) for row in rows):
        raise RunError(
            f"suite {suite.name}: the rows of {category}, {configuration.label} differ in settings or images, not in "
            "their seed alone; remove the older rows to run their cells again"
        )


def _paper(suite: Suite, configuration: Configuration, category: str) -> Published | None:
    column = paper_column(configuration)
    if suite.paper_table is None or column is None:
        return None
    return TABLES[suite.paper_table].number(category.rpartition("/")[2] or "parameters", column)


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return UNDEFINED
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _published(paper: Published | None, digits: int) -> str:
    if paper is None:
        return UNDEFINED
    return f"{paper.value:.{digits}f}" + ("" if paper.spread is None else f" ± {paper.spread:.{digits}f}")


def _difference(values: Sequence[float], paper: Published | None, digits: int) -> str:
    return UNDEFINED if paper is None or not values else f"{statistics.mean(values) - paper.value:+.{digits}f}"


def _caption(suite: Suite, rows: Mapping[str, ResultRow], legend: str) -> str:
    keys = {cell.key for cell in suite.cells()}
    used = [row for key, row in rows.items() if key in keys]
    if not used:
        return f"No rows yet: `python -m benchmarks {suite.name} --data ROOT`."
    parts = [f"{len(used)} of {len(keys)} cells, `{suite.name}.jsonl`"]
    parts += sorted({_commit(row) for row in used})
    parts += sorted({f"torch {row.versions['torch']}" for row in used})
    parts += sorted({_machine(row) for row in used})
    if len(rows) > len(used):
        parts.append(f"{len(rows) - len(used)} rows of cells that are no longer declared")
    return wrapped(f"{LEGENDS[legend]}{'; '.join(parts)}.")


def wrapped(text: str) -> str:
    """Return a text broken into lines of the width of a page."""
    return "\n".join(textwrap.wrap(text, WIDTH, break_on_hyphens=False))  # keep the `-dirty` of a commit on its line


def _image_level(method: str) -> bool:
    return method in methods() and methods()[method].image_level


def _commit(row: ResultRow) -> str:
    if row.commit is None:
        return "commit unknown"
    return f"commit {row.commit[:8]}{'-dirty' * row.commit.endswith('-dirty')}"


def _machine(row: ResultRow) -> str:
    processor = row.machine["gpu"] or row.machine["cpu"]
    return f"{processor}, {row.threads} threads of {row.machine['cores']}" + (
        f", {row.training['precision']}" if "precision" in row.training else ""
    )


Column = tuple[str, Callable[[Line], str]]

_TRAINED: Column = (
    "trained",
    lambda line: {"paper": "as published", "default": "default"}.get(line.protocol, UNDEFINED),
)
"""Shown for suites with both protocols."""

_CELL: tuple[Column, ...] = (
    ("category", lambda line: line.category),
    ("configuration", lambda line: line.label),
    _TRAINED,
    ("score", lambda line: line.scoring if line.rows else UNDEFINED),
    ("seeds", lambda line: str(len(line.rows)) if line.rows else UNDEFINED),
)
_SECONDS: Column = ("s", lambda line: f"{statistics.mean(line.seconds()):.0f}" if line.rows else UNDEFINED)

COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "pixel": (
        *_CELL,
        ("to 0.3", lambda line: _mean(line.values("pixel_auroc_fpr30"), 3)),
        ("full", lambda line: _mean(line.values("pixel_auroc"), 3)),
        ("image", lambda line: _mean(line.values("image_auroc"), 3)),
        ("paper", lambda line: _published(line.paper, 3)),
        ("Δ to 0.3", lambda line: _difference(line.values("pixel_auroc_fpr30"), line.paper, 3)),
        ("Δ full", lambda line: _difference(line.values("pixel_auroc"), line.paper, 3)),
        _SECONDS,
    ),
    "image": (
        *_CELL,
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
    "Mean ± standard deviation over seeds; Δ: minus the paper's number; s: seconds of training and evaluation, on a "
    "GPU only if no row is from a CPU. Rows: "
)

SUMMARY_LEGEND = "summary"
SUMMARY_COLUMNS: tuple[Column, ...] = (
    ("category", lambda line: line.category),
    ("method", lambda line: line.label),
    ("image AUROC", lambda line: _mean(line.values("image_auroc"), 3)),
    ("pixel AUROC to FPR 0.3", lambda line: _mean(line.values("pixel_auroc_fpr30"), 3)),
    ("pixel AP", lambda line: _mean(line.values("pixel_ap"), 3)),
)
COMPARISON_LEGEND = "comparison"
COMPARED: tuple[tuple[str, Callable[[Line], list[float]]], ...] = (
    ("image AUROC", lambda line: line.values("image_auroc")),
    ("to 0.3", lambda line: line.values("pixel_auroc_fpr30")),
    ("AP", lambda line: line.values("pixel_ap")),
    ("found", lambda line: line.fractions("tp", "fn")),
    ("false alarms", lambda line: line.fractions("fp", "tn")),
)
"""Metrics of the table `comparison:SUITE`: title, and the values of a line's rows."""


def _column(title: str, values: Callable[[Line], list[float]]) -> Column:
    return title, lambda line: _mean(values(line), 3)


COMPARISON_COLUMNS: tuple[Column, ...] = (
    ("category", lambda line: line.category),
    ("method", lambda line: line.label),
    *(_column(title, values) for title, values in COMPARED),
    _SECONDS,
)
LEGENDS: Mapping[str, str] = {
    COMPARISON_LEGEND: "*to 0.3*: pixel AUROC up to a false-positive rate of 0.3; *AP*: average precision of pixels. "
    "*found* and *false alarms*: fractions of the defective and of the good test images above the threshold that was "
    "set for 1 % false alarms. s: seconds of training and evaluation. Mean ± standard deviation over seeds; the last "
    "lines have the means of the categories that have the metric. Rows: ",
    SUMMARY_LEGEND: "Trained on good images only, with defaults; mean ± standard deviation where several seeds were "
    "run. Rows: ",
    "pixel": "*to 0.3*, *full*: pixel AUROC up to a false-positive rate of 0.3, divided by 0.3, and the full pixel "
    "AUROC, at the model's resolution; the paper's number may be either, so it is compared with both. Image-level "
    "methods have no pixel metrics. *image*: image AUROC. " + _COMMON,
    "image": "*image*: image AUROC. " + _COMMON,
    "parameters": "Δ: minus the paper's number. Rows: ",
    DEFECT_LEGEND: "Each defect type is measured on its own images and all good images. *found*: anomalous images "
    "above the threshold for 1 % false alarms, for each seed. *AUPRO*, *AP*: region overlap and average precision of "
    "pixels; *to 0.3*: pixel AUROC up to a false-positive rate of 0.3; all at the model's resolution. *image*: image "
    "AUROC. Mean ± standard deviation over seeds. Rows: ",
}
