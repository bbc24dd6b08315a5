"""The journal of a bulk prediction: what is stored beside its results, so that a killed run can be resumed.

`OUT/.predict` holds the plan, the list of images as it was found at the start, and for each shard of that list a file
to which a line is appended when an image's map and overlay are written. When all images are done, the results are in
`OUT/predictions.jsonl`, and only the plan is left.
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
from metalad.pipelines.predict.sources import Source
from metalad.results.prediction import SavedPrediction
from metalad.results.regions import Region
from metalad.runtime.errors import RunError
from metalad.runtime.files import delete_temporaries, os_errors_as_run_errors, replacing, write_json

FOLDER = ".predict"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a prediction; a resumed one must have the same, or its results would be of two kinds.

    format: of the shards' lines; 1 was metalad 0.1. model: SHA-256 of the model file. paths: SHA-256 of the paths.
    torch_threads: see `metalad.pipelines.inference.Threads`. shard: images of a shard. images: their total number.
    """

    format: int = 1

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
    """Consecutive images, and the file of their results."""

    number: int
    sources: Sequence[Source]
    file: Path


class Journal:
    """The folder of one prediction into `out`."""

    def __init__(self, out: Path) -> None:
        self.out, folder = out, out / FOLDER
        self.lock, self._plan = folder / "lock", folder / "plan.json"
        self._list, self._shards = folder / "sources.jsonl", folder / "shards"
        self.results = out / RESULTS

    def plan(self) -> Plan | None:
        """Return the plan of the prediction in this folder, if there is one.

        Raises:
            RunError: the record is damaged.
        """
        if not self._plan.exists():
            return None
        try:
            return Plan(**json.loads(self._plan.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise RunError(f"{self._plan} is damaged; delete it to start again") from None

    @property
    def finished(self) -> bool:
        """Whether `results` holds all results of the plan."""
        return not self._list.exists() and self.results.exists()

    def begin(self, plan: Plan, sources: Iterable[Source], sharded: int) -> Plan:
        """Store the list of sources, delete an earlier prediction, and return the plan with the number of images.

        sharded: the number of processes that the images are distributed over, 0 for none.
        """
        with os_errors_as_run_errors(self._list):
            self._plan.unlink(missing_ok=True)  # first: without it nothing else is used
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

    def clean(self) -> None:
        """Delete temporary files of a killed process."""
        for folder in (self.out, self._list.parent):
            delete_temporaries(folder)
        for folder in (self.out / MAPS, self.out / OVERLAYS):
            for below in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
                delete_temporaries(below)

    def shards(self, plan: Plan) -> Iterator[Shard]:
        """Yield the shards in order, each read when it is needed."""
        with self._list.open(encoding="utf-8") as lines:
            for number in range(-(-plan.images // plan.shard)):
                found = (json.loads(line) for line in islice(lines, plan.shard))
                sources = [Source(Path(path), name) for path, name in found]
                yield Shard(number, sources, self._shards / f"{number:06}.jsonl")

    def finish(self) -> None:
        """Delete the list and the shards; their results are in place."""
        with os_errors_as_run_errors(self._list):
            self._list.unlink(missing_ok=True)  # first: without it the prediction counts as finished
            shutil.rmtree(self._shards, ignore_errors=True)

    def recorded(self, plan: Plan) -> Iterator[SavedPrediction]:
        """Yield the results of a finished prediction."""
        with self.results.open(encoding="utf-8") as lines:
            for line in lines:
                yield SavedPrediction.from_dict(json.loads(line), plan.threshold)


def shard_size(images: int, batch_size: int, workers: int) -> int:
    """Return the number of images in a shard: whole batches, and few enough that all processes end together."""
    wanted = 256 if not workers else min(256, -(-images // (8 * workers)))
    return max(1, -(-wanted // batch_size)) * batch_size


# A shard's file


class ShardFile:
    """The results of a shard's images, one line each, without the paths, which the list has.

    stored: the lines that were there at the start; a truncated last line is dropped.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        with os_errors_as_run_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = file.open("a+b")
            self.stored, size = _whole_lines(self._file)
            self._file.truncate(size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def append(self, result: SavedPrediction) -> None:
        """Append the result of the next image, and flush it."""
        suffix = None if result.overlay is None else result.overlay.suffix
        line = json.dumps(
            [
                result.score,
                result.is_anomalous,
                result.map is not None,
                suffix,
                result.error,
                [region.to_dict() for region in result.regions],
                result.size,
            ],
            allow_nan=False,
        )
        with os_errors_as_run_errors(self._path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()


def stored_lines(shard: Shard) -> list[list[Any]]:
    """Return the stored results of a shard's first images."""
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


def rebuilt(source: Source, line: Sequence[Any], out: Path, threshold: float) -> SavedPrediction:
    """Return the result of an image from its line in a shard's file."""
    score, is_anomalous, has_map, suffix, error, regions, size = line
    map_file = out / MAPS / f"{source.name}.png" if has_map else None
    overlay = out / OVERLAYS / f"{source.name}{suffix}" if suffix else None
    found = tuple(Region.from_dict(region) for region in regions)
    return SavedPrediction(
        source.path, score, threshold, is_anomalous, found, map_file, overlay, error, size and tuple(size)
    )
