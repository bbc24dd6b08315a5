"""Run jobs in this process, in worker processes or on Ray, and append a row per finished job. No torch until then."""

import contextlib
import importlib
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalad.pipelines.benchmark.cells import Cell
from metalad.pipelines.benchmark.job import Failure, Job, result_from_json
from metalad.pipelines.benchmark.rows import ResultRow, append_row
from metalad.runtime import tasks
from metalad.runtime.errors import ConfigError

RUN_JOB = "metalad.pipelines.benchmark.execution:run_job_json"
MAX_MEMORY_GIB = 2**20

Results = Generator[tuple[Job, ResultRow | Failure], None, None]


@dataclass(frozen=True)
class Resources:
    """Where jobs run, and what each of them gets.

    workers: run this many jobs at once, each in a process of its own; None: one after the other in this process.
    ray: the address of a Ray cluster, or `local`; `workers` then limits the number of tasks at once.
    threads: torch threads per job; the results depend on them in the last bits.
    memory: GiB reserved for a job on Ray.

    Raises:
        ConfigError: a number is out of range.
    """

    workers: int | None = None
    ray: str | None = None
    threads: int = 2
    memory: float = 3.0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; it must be at least 1")
        if self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; it must be at least 1")
        if not 0 < self.memory < MAX_MEMORY_GIB:
            raise ConfigError(f"memory is {self.memory} GiB; it must be more than 0")


def run_jobs(jobs: Sequence[Job], resources: Resources, *, function: str = RUN_JOB, progress: bool) -> Results:
    """Yield each job with its result, as the jobs finish.

    Args:
        jobs: their folders must have the same paths on every node of a Ray cluster.
        resources: where they run.
        function: `module:name` of a function from a job to its result, both as JSON values.
        progress: print progress bars of a job that runs in this process.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    if resources.ray is not None and jobs:
        return on_ray(jobs, resources.ray, resources.workers, resources.memory, function)
    if resources.workers is not None:
        return in_processes(jobs, resources.workers, function)
    return in_this_process(jobs, function, progress=progress)


def in_this_process(jobs: Sequence[Job], function: str = RUN_JOB, *, progress: bool) -> Results:
    """Run the jobs in this process, in order."""
    module, _, name = function.partition(":")
    run: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), name)
    for job in jobs:
        yield job, result_from_json(run(job.to_json(), progress=progress))


def in_processes(jobs: Sequence[Job], workers: int, function: str = RUN_JOB) -> Results:
    """Run `workers` jobs at once, each in a new process."""
    values = (job.to_json() for job in jobs)
    return _results(jobs, tasks.in_processes(function, values, workers, fresh=True))


def on_ray(
    jobs: Sequence[Job], address: str, workers: int | None, memory_gib: float, function: str = RUN_JOB
) -> Results:
    """Run each job as a Ray task in a new worker, which reserves the job's processors, GPU and memory.

    Args:
        jobs: their folders must have the same paths on every node, as on a shared file system.
        address: of a running cluster (`auto`, `ray://…`), or `local` for one on this machine.
        workers: most tasks at once; None: as many as the cluster has resources for.
        memory_gib: memory of a task; its processors are its threads.
        function: see `run_jobs`.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    needs = tasks.TaskResources(jobs[0].threads, memory_gib, tasks.gpus_on_ray(jobs[0].device))
    values = (job.to_json() for job in jobs)
    return _results(jobs, tasks.on_ray(function, values, address, workers, needs, fresh=True))


def _results(jobs: Sequence[Job], answers: tasks.Answers) -> Results:
    with contextlib.closing(answers):
        for index, answer in answers:
            yield (
                jobs[index],
                Failure(answer.reason) if isinstance(answer, tasks.TaskFailure) else result_from_json(answer),
            )


def append_results(
    results: Iterable[tuple[Job, ResultRow | Failure]], count: int, path: Path, *, keep: bool = False, progress: bool
) -> tuple[list[ResultRow], list[tuple[Cell, str]]]:
    """Append each row to a file as it arrives; return the rows, and the cells that failed with their reasons.

    Args:
        results: of `run_jobs`.
        count: the number of jobs, for the progress lines.
        path: the file of rows.
        keep: keep the work folder of a finished job; else it is deleted. That of a failed job always stays.
        progress: print a line per finished job to stderr.

    Raises:
        RunError: a row cannot be written.
    """
    rows: list[ResultRow] = []
    failures: list[tuple[Cell, str]] = []
    for job, result in results:
        print_progress(progress, f"[{len(rows) + len(failures) + 1}/{count}] {_result_line(job.cell, result)}")
        if isinstance(result, Failure):
            failures.append((job.cell, result.reason))
            continue
        append_row(path, result)
        rows.append(result)
        if not keep:
            shutil.rmtree(job.work, ignore_errors=True)
    return rows, failures


def print_progress(progress: bool, text: str) -> None:
    """Print a line to stderr if progress is wanted."""
    if progress and sys.stderr is not None:
        with contextlib.suppress(OSError):  # work does not stop because nobody can read its progress
            print(text, file=sys.stderr, flush=True)


def _result_line(cell: Cell, result: ResultRow | Failure) -> str:
    if isinstance(result, Failure):
        return f"{cell.key} {cell.name}: failed: {result.reason}"
    return f"{cell.key} {cell.name}: done in {result.seconds:.0f} s"
