"""The result of a benchmark, as plain data."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metalad.pipelines.benchmark.rows import ResultRow


@dataclass(frozen=True)
class CellFailure:
    """A cell that failed: its key, its name `CATEGORY:METHOD:SEED`, and the reason in one line."""

    key: str
    name: str
    reason: str


@dataclass(frozen=True)
class BenchmarkReport:
    """The finished cells of a benchmark, of this run and of earlier ones.

    rows: in the order of the table: category by category, method by method, seed by seed.
    failures: cells that failed in this run; the next run tries them again.
    out: the folder with `rows.jsonl`, `table.md` and `table.csv`.
    table: the table as plain text.
    """

    rows: tuple[ResultRow, ...]
    failures: tuple[CellFailure, ...]
    out: Path
    table: str

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "failures": [asdict(failure) for failure in self.failures],
            "out": str(self.out),
            "table": self.table,
        }
