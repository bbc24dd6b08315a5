"""The table of a benchmark: a line per category and method, mean ± standard deviation over seeds."""

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metalad.pipelines.benchmark.cells import Cell
from metalad.pipelines.benchmark.rows import ResultRow
from metalad.results.report_text import aligned
from metalad.runtime.errors import escaped, printable

UNDEFINED = "–"
NOTE = (
    "Mean ± standard deviation over seeds. Pixel metrics are computed at the model's resolution, all metrics with the "
    "method's own score (its setting `scoring`). to FPR 0.3: area up to a false-positive rate of 0.3, divided by 0.3. "
    "found, false alarms: fraction of anomalous and of good images above the threshold."
)


@dataclass(frozen=True)
class Column:
    """A number per row; `name` is that of the CSV column, `digits` are those after the decimal point."""

    title: str
    name: str
    value: Callable[[ResultRow], float | None]
    digits: int = 3


@dataclass(frozen=True)
class Line:
    """The rows of one method on one category, one per finished seed."""

    category: str
    method: str
    rows: tuple[ResultRow, ...]

    def values(self, column: Column) -> list[float]:
        """Return the column's value in each row that has one."""
        return [value for row in self.rows if (value := column.value(row)) is not None]

    def texts(self, columns: Sequence[Column]) -> list[str]:
        """Return the table cells after category and method."""
        return [str(len(self.rows)), *(_mean_text(self.values(column), column.digits) for column in columns)]


def table_lines(cells: Sequence[Cell], rows: Mapping[str, ResultRow]) -> list[Line]:
    """Return a line per category and method, in the order of the cells; `rows` are given by key."""
    groups: dict[tuple[str, str], list[ResultRow]] = {}
    for cell in cells:
        group = groups.setdefault((cell.category or "", cell.configuration.label), [])
        if cell.key in rows:
            group.append(rows[cell.key])
    return [Line(category, method, tuple(group)) for (category, method), group in groups.items()]


def text_table(lines: Sequence[Line]) -> str:
    """Return the table for a terminal."""
    width = max([len("category"), *(len(printable(line.category)) for line in lines)])
    label = max([len("method"), *(len(printable(line.method)) for line in lines)])

    def first(category: str, method: str) -> str:
        return f"{printable(category):{width}}  {printable(method):{label}}"

    header = [first("category", "method"), "seeds", *(column.title for column in COLUMNS)]
    return aligned([header, *([first(line.category, line.method), *line.texts(COLUMNS)] for line in lines)])


def markdown_table(lines: Sequence[Line]) -> str:
    """Return the table as Markdown, with a note on the columns."""
    header = ["category", "method", "seeds", *(column.title for column in COLUMNS)]
    names = [[_escaped(line.category), _escaped(line.method)] for line in lines]
    body = [[*pair, *line.texts(COLUMNS)] for pair, line in zip(names, lines, strict=True)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ["---"] * len(header), *body))
    return f"{table}\n{NOTE}\n"


def csv_table(lines: Sequence[Line]) -> str:
    """Return the table as CSV: mean and standard deviation in columns of their own, empty where undefined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["category", "method", "seeds", *(f"{each.name}_{part}" for each in COLUMNS for part in ("mean", "std"))]
    )
    for line in lines:
        numbers: list[float | str] = []
        for column in COLUMNS:
            values = line.values(column)
            numbers.append(statistics.mean(values) if values else "")
            numbers.append(statistics.stdev(values) if len(values) > 1 else "")
        writer.writerow([line.category, line.method, len(line.rows), *numbers])
    return escaped(text.getvalue())


def _mean_text(values: Sequence[float], digits: int) -> str:
    if not values:
        return UNDEFINED
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _escaped(text: str) -> str:
    return escaped(printable(text)).replace("|", "\\|")


def _scoring(row: ResultRow) -> Mapping[str, Any]:
    scoring: Mapping[str, Any] = row.metrics[row.config["scoring"]]
    return scoring


def _metric(name: str) -> Callable[[ResultRow], float | None]:
    return lambda row: _scoring(row)["model"][name]


def _rate(above: str, below: str) -> Callable[[ResultRow], float | None]:
    """Return a function that computes the fraction of images above the threshold from the confusion counts."""

    def rate(row: ResultRow) -> float | None:
        counts = _scoring(row)["confusion"]
        total = counts[above] + counts[below]
        return counts[above] / total if total else None

    return rate


COLUMNS = (
    Column("image AUROC", "image_auroc", _metric("image_auroc")),
    Column("pixel AUROC", "pixel_auroc", _metric("pixel_auroc")),
    Column("to FPR 0.3", "pixel_auroc_fpr30", _metric("pixel_auroc_fpr30")),
    Column("AUPRO", "pixel_aupro", _metric("pixel_aupro")),
    Column("AP", "pixel_ap", _metric("pixel_ap")),
    Column("found", "found", _rate("tp", "fn")),
    Column("false alarms", "false_alarms", _rate("fp", "tn")),
    Column("seconds", "seconds", lambda row: row.seconds, 0),
)
