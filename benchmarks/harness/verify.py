"""Run the cell of a row again, and compare the metrics."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.category_search import find_categories
from benchmarks.harness.suite_run import RESULTS
from metalad.pipelines.benchmark.cells import Cell, Configuration
from metalad.pipelines.benchmark.job import Failure, Job
from metalad.pipelines.benchmark.machine import commit
from metalad.pipelines.benchmark.rows import ResultRow, comparable, read_rows
from metalad.pipelines.benchmark.scheduling import in_this_process
from metalad.runtime.errors import ConfigError, RunError

TOLERANCE = 0.02
"""Allowed difference of a metric between machines: rounding differs, and gradient descent amplifies it."""


@dataclass(frozen=True)
class Verification:
    """Whether the metrics of a row hold.

    tolerance: the allowed difference; 0 requires equality.
    reason: why this tolerance applies.
    differences: (metric, recorded value, new value) of each metric outside the tolerance.
    """

    row: ResultRow
    again: ResultRow
    holds: bool
    tolerance: float
    reason: str
    differences: tuple[tuple[str, Any, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the verification as JSON values."""
        return {
            "key": self.row.key,
            "name": self.row.name,
            "holds": self.holds,
            "tolerance": self.tolerance,
            "reason": self.reason,
            "differences": [list(difference) for difference in self.differences],
            "again": self.again.to_json(),
        }

    def text(self) -> str:
        """Return the verification as text."""
        tolerance = "exactly" if self.tolerance == 0 else f"within {self.tolerance}"
        lines = [
            f"{self.row.key} {self.row.name}: {'holds' if self.holds else 'DOES NOT HOLD'}, {tolerance} ({self.reason})"
        ]
        lines += [f"  {metric}: was {recorded}, is {now}" for metric, recorded, now in self.differences]
        return "\n".join(lines)


def verify(suite: str, row: str, data: Path | None, *, out: Path = RESULTS, progress: bool = False) -> Verification:
    """Run the cell of a row again, with the row's settings and number of threads, and compare the metrics.

    A row from a GPU is run on a GPU if there is one, else on the CPU. On the same machine with the same versions, all
    numbers must be equal. Otherwise, or on a GPU, whose sums have no fixed order, each metric over all defects must be
    within `TOLERANCE`.

    Args:
        suite: rows are read from `out/SUITE.jsonl`.
        row: a line number from 1, or the beginning of a key.
        data: the folder that contains the categories.
        out: the folder of rows.
        progress: show progress bars on the terminal.

    Raises:
        ConfigError: no such row, or no data given. RunError: the cell fails, or the images differ from those of the
            row.
    """
    recorded = _find(out / f"{suite}.jsonl", row)
    path = _path(recorded, data)
    with tempfile.TemporaryDirectory(prefix="metalad-verify-") as work:
        job = Job(
            suite=suite,
            cell=_cell(recorded),
            data=path,
            work=str(Path(work) / recorded.key),
            threads=recorded.threads,
            device="cpu" if recorded.device == "cpu" else "auto",  # without a GPU, the CPU verifies the row
            commit=commit(),
            config=recorded.config,
        )
        _, again = next(in_this_process([job], progress=progress))
    if isinstance(again, Failure):
        raise RunError(f"{recorded.key} {recorded.name} cannot be run again: {again.reason}")
    return _compare(recorded, again)


def _find(results: Path, wanted: str) -> ResultRow:
    rows = read_rows(results)
    if wanted.isdecimal() and 1 <= int(wanted) <= len(rows):
        return rows[int(wanted) - 1]
    found = {row.key: row for row in rows if wanted and row.key.startswith(wanted)}
    if len(found) != 1:
        raise ConfigError(
            f"{wanted!r} matches {len(found)} of the {len(rows)} rows in {results}; give a line number or a key"
        )
    return next(iter(found.values()))


def _path(row: ResultRow, data: Path | None) -> str | None:
    if row.category is None:
        return None
    if data is None:
        raise ConfigError(f"{row.name} needs the images of {row.category}; give --data, the folder that contains them")
    folder = find_categories(data, [row.category], {})[row.category]
    if folder.path is None:
        raise ConfigError(f"{row.category} is not below {data}: {folder.reason}")
    return str(folder.path)


def _cell(row: ResultRow) -> Cell:
    label = row.name.removesuffix(":paper").split(":", 1)[1].rsplit(":", 1)[0]
    configuration = Configuration(label, row.method, tuple(row.settings))
    return Cell(configuration, row.category, row.seed, "paper" if row.protocol == "paper" else "default", row.epochs)


def _compare(row: ResultRow, again: ResultRow) -> Verification:
    old, new = comparable(row), comparable(again)
    if old["data"] != new["data"]:
        raise RunError(f"{row.name}: the images of {row.category} differ from those of the row; give the same data")
    other = [name for name in ("machine", "versions", "device", "threads") if old[name] != new[name]]
    if old["training"].get("precision") != new["training"].get("precision"):
        other.append("precision")
    if other:
        reason, tolerance = f"other {', '.join(other)}", TOLERANCE
    elif row.device != "cpu":
        reason, tolerance = "on a GPU", TOLERANCE
    else:
        reason, tolerance = "same machine and versions", 0.0
    if row.commit != again.commit:
        reason += f"; commit {_short(row.commit)} then, {_short(again.commit)} now"
    old_numbers, new_numbers = (
        dict(_numbers((), {"metrics": _of_all_defects(values["metrics"]) if tolerance else values["metrics"]}))
        | {"parameters": values["parameters"]}
        for values in (old, new)
    )
    differences = tuple(
        (name, old_numbers.get(name), new_numbers.get(name))
        for name in sorted(old_numbers.keys() | new_numbers.keys())
        if not _agree(old_numbers.get(name), new_numbers.get(name), 0.0 if name == "parameters" else tolerance)
    )
    return Verification(row, again, not differences, tolerance, reason, differences)


def _of_all_defects(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        scoring: {resolution: found[resolution] for resolution in ("model", "original")}
        for scoring, found in metrics.items()
    }


def _numbers(above: Sequence[str], value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for name, below in value.items() for pair in _numbers((*above, str(name)), below)]
    return [(".".join(above), value)]


def _agree(old: Any, new: Any, tolerance: float) -> bool:
    if old is None or new is None or not tolerance:
        return bool(old == new)
    return bool(abs(old - new) <= tolerance)


def _short(commit_name: str | None) -> str:
    return "unknown" if commit_name is None else commit_name[:8] + "-dirty" * commit_name.endswith("-dirty")
