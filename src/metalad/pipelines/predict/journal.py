"""What a bulk judgement keeps beside its results, so that one that was killed goes on where it stopped.

In `OUT/.predict` lie the plan, the list of images as it was found at the start, and for each shard of that list a
file with a line an image, appended when its map and overlay are written. When all is done the lines are in
`OUT/predictions.jsonl`, and the plan alone is left.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from metalad.data.images import MAPS, OVERLAYS, RESULTS
from metalad.detectors.base import Scoring
from metalad.pipelines.predict.pipeline import PredictedImage
from metalad.pipelines.predict.sources import Source
from metalad.runtime.errors import RunError
from metalad.runtime.files import delete_temporaries, os_errors_as_run_errors, replacing, write_json

FOLDER = ".predict"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a judgement was begun with; one that is gone on with must agree, or its results would be of two kinds.

    model: SHA-256 of the model file. paths: SHA-256 of the paths given. torch_threads: see `Crew`.
    shard: images of a shard. images: their number in all.
    """

    model: str
    paths: str
    scoring: Scoring
    threshold: float
    batch_size: int
    strict: bool
    maps: bool
    overlays: bool
    device: str
    torch_threads: int
    shard: int = 0
    images: int = 0


@dataclass(frozen=True)
class Shard:
    """Some images that follow each other, and the file for what is found in them."""

    number: int
    sources: Sequence[Source]
    file: Path


class Journal:
    """The folder of one judgement into `out`."""

    def __init__(self, out: Path) -> None:
        self.out, folder = out, out / FOLDER
        self.lock, self._plan = folder / "lock", folder / "plan.json"
        self._list, self._shards = folder / "sources.jsonl", folder / "shards"
        self.results = out / RESULTS

    def plan(self) -> Plan | None:
        """Return what the judgement in this folder was begun with, if there is one.

        Raises:
            RunError: the record is damaged.
        """
        if not self._plan.exists():
            return None
        try:
            return Plan(**json.loads(self._plan.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise RunError(f"{self._plan} is damaged; delete it to begin anew") from None

    @property
    def finished(self) -> bool:
        """Whether all results of the plan are in `results`."""
        return not self._list.exists() and self.results.exists()

    def begin(self, plan: Plan, sources: Iterable[Source], sharded: int) -> Plan:
        """List the sources, forget what was begun before, and return the plan with their number.

        sharded: among how many processes the images will be dealt out, 0 if they are not.
        """
        with os_errors_as_run_errors(self._list):
            self._plan.unlink(missing_ok=True)  # first, as without it nothing else counts
            shutil.rmtree(self._shards, ignore_errors=True)
            delete_temporaries(self.out)
            delete_temporaries(self._list.parent)
        count = 0
        with replacing(self._list) as temporary, temporary.open("w", encoding="utf-8") as file:
            for source in sources:
                file.write(json.dumps([str(source.path), source.name]) + "\n")
                count += 1
        plan = dataclasses.replace(plan, images=count, shard=shard_size(count, plan.batch_size, sharded))
        write_json(self._plan, dataclasses.asdict(plan))
        return plan

    def go_on(self) -> None:
        """Delete what a killed process was writing."""
        for folder in (self.out, self._list.parent):
            delete_temporaries(folder)
        for folder in (self.out / MAPS, self.out / OVERLAYS):
            for below in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
                delete_temporaries(below)

    def shards(self, plan: Plan) -> Iterator[Shard]:
        """Yield the shards in order, each when it is asked for."""
        with self._list.open(encoding="utf-8") as lines:
            for number in range(-(-plan.images // plan.shard)):
                found = (json.loads(line) for line in islice(lines, plan.shard))
                sources = [Source(Path(path), name) for path, name in found]
                yield Shard(number, sources, self._shards / f"{number:06}.jsonl")

    def finish(self) -> None:
        """Forget the list and the shards, when their results are in place."""
        with os_errors_as_run_errors(self._list):
            self._list.unlink(missing_ok=True)  # first: without it the judgement counts as finished
            shutil.rmtree(self._shards, ignore_errors=True)

    def recorded(self, plan: Plan) -> Iterator[PredictedImage]:
        """Yield the results of a finished judgement."""
        with self.results.open(encoding="utf-8") as lines:
            for line in lines:
                yield PredictedImage.from_json(json.loads(line), plan.threshold)


def shard_size(images: int, batch_size: int, workers: int) -> int:
    """Return how many images a process is given at once: whole batches, few enough for all to end together."""
    wanted = 256 if not workers else min(256, -(-images // (8 * workers)))
    return max(1, -(-wanted // batch_size)) * batch_size


# A shard's file


class ShardFile:
    """What is found in a shard's images, a line each, without the paths, which the list has.

    `found` holds what was there at the start: a last line that was cut short is forgotten.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        with os_errors_as_run_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = file.open("a+b")
            self.found, size = _whole_lines(self._file)
            self._file.truncate(size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def append(self, result: PredictedImage) -> None:
        """Add what was found in the next image; it is on its way to the disk when this returns."""
        suffix = None if result.overlay is None else result.overlay.suffix
        line = json.dumps(
            [result.score, result.abnormal, result.map is not None, suffix, result.error], allow_nan=False
        )
        with os_errors_as_run_errors(self._path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()


def found_in(shard: Shard) -> list[list[Any]]:
    """Return what is known of a shard's first images."""
    try:
        with shard.file.open("rb") as file:
            return _whole_lines(file)[0]
    except FileNotFoundError:
        return []


def _whole_lines(file: Any) -> tuple[list[list[Any]], int]:
    file.seek(0)
    found, size = [], 0
    for line in file:
        try:
            if not line.endswith(b"\n"):
                break
            found.append(json.loads(line))
        except ValueError:
            break
        size += len(line)
    return found, size


def rebuilt(source: Source, found: Sequence[Any], out: Path, threshold: float) -> PredictedImage:
    """Return the result of which a shard's file holds a line."""
    score, abnormal, mapped, suffix, error = found
    map_file = out / MAPS / f"{source.name}.png" if mapped else None
    overlay = out / OVERLAYS / f"{source.name}{suffix}" if suffix else None
    return PredictedImage(source.path, score, threshold, abnormal, map_file, overlay, error)
