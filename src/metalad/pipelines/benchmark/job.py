"""A job and what can become of it, as plain data that goes wherever it is done. No torch here."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metalad.pipelines.benchmark.declaration import Cell, Configuration
from metalad.pipelines.benchmark.rows import Row


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell with all that doing it needs, wherever that is.

    data: the category's folder, `work` the folder to train in; both absolute.
    picture: where examples of what the model makes are to be drawn, absolute; None: nowhere.
    config: all settings, to do a cell as an old row has it; None: the cell's settings and today's defaults.
    """

    suite: str
    cell: Cell
    data: str | None
    work: str
    threads: int
    device: str
    commit: str | None = None
    config: Mapping[str, Any] | None = None
    picture: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the job in JSON's own types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Job":
        """Rebuild a job."""
        cell = dict(values["cell"])
        configuration = dict(cell.pop("configuration"))
        configuration["settings"] = tuple(configuration["settings"])
        return cls(**{**values, "cell": Cell(Configuration(**configuration), **cell)})


@dataclass(frozen=True)
class Failure:
    """Why a cell could not be done."""

    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the failure in JSON's own types."""
        return {"failure": self.reason}


def outcome(values: Mapping[str, Any]) -> Row | Failure:
    """Rebuild what `attempt` returned from JSON."""
    return Failure(values["failure"]) if "failure" in values else Row.from_json(values)
