"""Three ways to do many jobs: here, in processes of their own, or on Ray. No torch here until one is done here."""

import contextlib
from collections.abc import Generator, Sequence

from metalad.pipelines.benchmark.job import Failure, Job, outcome
from metalad.pipelines.benchmark.rows import Row
from metalad.runtime import tasks

ANSWER = "metalad.pipelines.benchmark.doing:answer"
Results = Generator[tuple[Job, Row | Failure], None, None]


def one_by_one(jobs: Sequence[Job], *, progress: bool) -> Results:
    """Do the jobs in this process, in order."""
    from metalad.pipelines.benchmark.doing import attempt

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
