"""Inference in other processes, on this machine or on Ray; the results arrive in order."""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from metalad.pipelines.predict.journal import Journal, Plan, Shard, rebuilt, stored_lines
from metalad.pipelines.predict.shards import ANSWER, task_of
from metalad.results.prediction import SavedPrediction
from metalad.runtime.errors import ImageError, RunError, error_from_json
from metalad.runtime.tasks import Answers, TaskFailure, TaskResources, gpus_on_ray, in_processes, on_ray

RAY_MEMORY_GIB = 2.0
RAY_PROCESSES = 16
"""Assumed number of processes of a cluster of unknown size, which decides the size of shards."""


@dataclass(frozen=True)
class Remote:
    """Worker processes on this machine, or on the Ray cluster at an address, at most `workers` of them.

    Raises:
        ConfigError: no such device.
    """

    device: str
    workers: int | None
    ray: str | None

    def __post_init__(self) -> None:
        if self.ray is None:
            _device_type(self.device)
        else:
            gpus_on_ray(self.device)

    @property
    def device_type(self) -> str:
        """The type of device of the workers, as far as this machine can tell."""
        return _device_type("auto") if self.device == "auto" else self.device.partition(":")[0]

    @property
    def processes(self) -> int:
        """The number of processes, or an estimate of it."""
        return self.workers or RAY_PROCESSES

    def results(
        self, journal: Journal, plan: Plan, model: Path, threads: int
    ) -> Generator[SavedPrediction, None, None]:
        """Process the images without a stored result, and yield all results in order as soon as they are available.

        threads: that one process of this machine would have.

        Raises:
            MetaladError: the error of the first failed shard, in order; earlier results are yielded before. After a
                failure no other shard is started.
        """
        tasks = _Tasks()
        answers = self._answers(tasks.submit(journal, plan, model, self, threads), plan)
        with contextlib.closing(answers):
            for shard in journal.shards(plan):
                found = stored_lines(shard)
                if len(found) < len(shard.sources):
                    answer = tasks.answer(shard, answers)
                    found = stored_lines(shard)
                else:
                    answer = {}
                for source, line in zip(shard.sources, found, strict=False):
                    yield rebuilt(source, line, journal.out, plan.threshold)
                _raise(answer, shard, len(found))

    def _answers(self, tasks: Iterator[dict[str, Any]], plan: Plan) -> Answers:
        if self.ray is None:
            return in_processes(ANSWER, tasks, self.workers or 1, fresh=False)
        needs = TaskResources(plan.torch_threads, RAY_MEMORY_GIB, gpus_on_ray(self.device))
        return on_ray(ANSWER, tasks, self.ray, self.workers, needs, fresh=False)

    def share_of(self, threads: int) -> int:
        """Return the number of worker threads in each process, of those that one process would have."""
        return 1 if self.ray is not None else max(1, threads // (self.workers or 1))


class _Tasks:
    """Which shard was submitted as which task, and the answers that arrived before they are needed."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._early: dict[int, dict[str, Any] | TaskFailure] = {}
        self._failed = False

    def submit(
        self, journal: Journal, plan: Plan, model: Path, remote: Remote, threads: int
    ) -> Iterator[dict[str, Any]]:
        """Yield the shards without all results as tasks, until one fails."""
        places = count()
        for shard in journal.shards(plan):
            if self._failed:
                return
            if len(stored_lines(shard)) < len(shard.sources):
                self._numbers[next(places)] = shard.number
                yield task_of(shard, plan, model, journal.out, remote.device, remote.share_of(threads))

    def answer(self, shard: Shard, answers: Answers) -> dict[str, Any] | TaskFailure:
        """Wait for the answer to a shard."""
        while shard.number not in self._early:
            place, answer = next(answers)
            self._early[self._numbers.pop(place)] = answer
            self._failed = self._failed or answer != {}
        return self._early.pop(shard.number)


def _device_type(wanted: str) -> str:
    """Return the type of a device; raises as `metalad.training.device.choose_device`."""
    if wanted == "cpu":
        return wanted
    from metalad.training.device import choose_device  # imports torch, which an exported model does without

    return choose_device(wanted).type


def _raise(answer: dict[str, Any] | TaskFailure, shard: Shard, done: int) -> None:
    if isinstance(answer, TaskFailure):
        raise RunError(
            f"predict stopped: {answer.reason}; continue with --resume, with fewer --workers if memory was short"
        )
    if "bug" in answer:
        raise RuntimeError(f"in another process:\n{answer['bug']}")
    if "error" in answer:
        error = error_from_json(answer["error"])
        # With the path as it was given here; the worker has an absolute one.
        raise ImageError(shard.sources[done].path, error.reason) if isinstance(error, ImageError) else error
    if done < len(shard.sources):
        raise RunError(f"{shard.file} lacks results; is its folder the same on every machine?")
