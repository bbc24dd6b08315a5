"""A job as plain data, and three ways to do many: here, in processes of their own, or on Ray. No torch here."""

import contextlib
import dataclasses
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metalad import tasks
from metalad.benchmark.declaration import Cell, Configuration
from metalad.benchmark.rows import Row

ANSWER = "metalad.benchmark.job:answer"


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


Results = Generator[tuple[Job, Row | Failure], None, None]


def outcome(values: Mapping[str, Any]) -> Row | Failure:
    """Rebuild what `attempt` returned from JSON."""
    return Failure(values["failure"]) if "failure" in values else Row.from_json(values)


def one_by_one(jobs: Sequence[Job], *, progress: bool) -> Results:
    """Do the jobs in this process, in order."""
    from metalad.benchmark.job import attempt

    for job in jobs:
        yield job, attempt(job, progress=progress)


def in_processes(jobs: Sequence[Job], workers: int) -> Results:
    """Do so many jobs at once, each in a fresh process."""
    values = (job.to_json() for job in jobs)
    return _results(jobs, tasks.in_processes(ANSWER, values, workers, fresh=True))


def on_ray(jobs: Sequence[Job], address: str, workers: int | None, memory_gib: float) -> Results:
    """Do the jobs as Ray tasks, one a cell, each in a fresh worker with its share of processors, GPUs and memory.

    Args:
        jobs: their folders must mean the same on every node, as on a shared file system.
        address: of a running cluster (`auto`, `ray://…`), or `local` for one on this machine.
        workers: most tasks at once; None: as many as there is room for.
        memory_gib: memory of a task; its processors are its threads.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    needs = tasks.Needs(jobs[0].threads, memory_gib, tasks.gpus_on_ray(jobs[0].device))
    values = (job.to_json() for job in jobs)
    return _results(jobs, tasks.on_ray(ANSWER, values, address, workers, needs, fresh=True))


def _results(jobs: Sequence[Job], answers: tasks.Answers) -> Results:
    with contextlib.closing(answers):
        for place, answer in answers:
            yield jobs[place], Failure(answer.reason) if isinstance(answer, tasks.Lost) else outcome(answer)
