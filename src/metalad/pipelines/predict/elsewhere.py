"""Judge images in other processes, on this machine or on Ray, and tell the results in order."""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from metalad.pipelines.predict.journal import Journal, Plan, Shard, found_in, rebuilt
from metalad.pipelines.predict.pipeline import Crew, PredictedImage
from metalad.pipelines.predict.shards import ANSWER, task_of
from metalad.runtime import errors
from metalad.runtime.errors import ImageError, RunError
from metalad.runtime.tasks import Answers, TaskFailure, TaskResources, gpus_on_ray, in_processes, on_ray
from metalad.training.device import choose_device

RAY_MEMORY_GIB = 2.0
RAY_PROCESSES = 16
"""So finely are images dealt out to a cluster whose number of processes is not known."""


@dataclass(frozen=True)
class Elsewhere:
    """So many processes on this machine, or at most so many on the Ray cluster at an address.

    Raises:
        ConfigError: no such device, at the call.
    """

    device: str
    workers: int | None
    ray: str | None

    def __post_init__(self) -> None:
        if self.ray is None:
            choose_device(self.device)
        else:
            gpus_on_ray(self.device)

    @property
    def device_type(self) -> str:
        """What the images are judged on, as far as it can be told from here."""
        return choose_device("auto").type if self.device == "auto" else self.device.partition(":")[0]

    @property
    def processes(self) -> int:
        """Return how many processes there will be, more or less."""
        return self.workers or RAY_PROCESSES

    def judge(self, journal: Journal, plan: Plan, model: Path) -> Generator[PredictedImage, None, None]:
        """Judge what a journal lacks, and yield all results in order, as soon as they are known.

        Raises:
            MetaladError: what the first shard that failed, in order, failed by; what comes before it is yielded.
                When one fails, no other is begun.
        """
        deal = _Deal()
        answers = self._answers(deal.tasks(journal, plan, model, self), plan)
        with contextlib.closing(answers):
            for shard in journal.shards(plan):
                found = found_in(shard)
                if len(found) < len(shard.sources):
                    answer = deal.answer(shard, answers)
                    found = found_in(shard)
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

    def threads(self) -> int:
        """Return how many threads each process reads, judges and writes in."""
        return 1 if self.ray is not None else max(1, Crew.of_machine().workers // (self.workers or 1))


class _Deal:
    """Which shard was dealt out as which task, and the answers that are not wanted yet."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._early: dict[int, dict[str, Any] | TaskFailure] = {}
        self._failed = False

    def tasks(self, journal: Journal, plan: Plan, model: Path, elsewhere: Elsewhere) -> Iterator[dict[str, Any]]:
        """Yield the shards that are not whole, until one fails."""
        places = count()
        for shard in journal.shards(plan):
            if self._failed:
                return
            if len(found_in(shard)) < len(shard.sources):
                self._numbers[next(places)] = shard.number
                yield task_of(shard, plan, model, journal.out, elsewhere.device, elsewhere.threads())

    def answer(self, shard: Shard, answers: Answers) -> dict[str, Any] | TaskFailure:
        """Wait for the answer to a shard."""
        while shard.number not in self._early:
            place, answer = next(answers)
            self._early[self._numbers.pop(place)] = answer
            self._failed = self._failed or answer != {}
        return self._early.pop(shard.number)


def _raise(answer: dict[str, Any] | TaskFailure, shard: Shard, done: int) -> None:
    if isinstance(answer, TaskFailure):
        raise RunError(f"judging stopped: {answer.reason}; go on by --resume, with fewer --workers if memory was short")
    if "bug" in answer:
        raise RuntimeError(f"in another process:\n{answer['bug']}")
    if answer.get("error") == "ImageError":
        raise ImageError(f"cannot read {shard.sources[done].path}: {answer['text']}")
    if "error" in answer:
        kind: type[errors.MetaladError] = getattr(errors, answer["error"])
        raise kind(answer["text"])
    if done < len(shard.sources):
        raise RunError(f"{shard.file} does not hold what was judged; is its folder the same on every machine?")
