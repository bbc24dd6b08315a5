"""A job (a cell with everything needed to run it) and its result, as JSON values for other processes. No torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metalad.pipelines.benchmark.cells import Cell, Configuration
from metalad.pipelines.benchmark.rows import ResultRow


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell with everything needed to run it, on any machine.

    data: the category's folder; None for a cell without a category.
    work: the folder to train in. Both paths are absolute.
    config: all settings of the method; None: the cell's settings and the current defaults.
    """

    suite: str
    cell: Cell
    data: str | None
    work: str
    threads: int
    device: str
    commit: str | None = None
    config: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        configuration = self.cell.configuration
        cell = {entry.name: getattr(self.cell, entry.name) for entry in dataclasses.fields(self.cell)}
        # A subclass of Configuration may have more fields; running the cell needs these only.
        cell["configuration"] = {
            entry.name: getattr(configuration, entry.name) for entry in dataclasses.fields(Configuration)
        }
        return {**values, "cell": cell, "config": None if self.config is None else dict(self.config)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Job":
        """Return the job that `to_json` was called on."""
        cell = dict(values["cell"])
        configuration = dict(cell.pop("configuration"))
        configuration["settings"] = tuple(configuration["settings"])
        return cls(**{**values, "cell": Cell(Configuration(**configuration), **cell)})


@dataclass(frozen=True)
class Failure:
    """Why a cell could not be finished."""

    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the failure as JSON values."""
        return {"failure": self.reason}


def result_from_json(values: Mapping[str, Any]) -> ResultRow | Failure:
    """Return the row or the failure whose `to_json` gave these values."""
    return Failure(values["failure"]) if "failure" in values else ResultRow.from_json(values)
