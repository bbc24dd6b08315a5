"""The journal of a bulk prediction: what is stored beside its results, so that a killed run can be resumed.

`OUT/.predict` holds the plan, the list of images as it was found at the start, and for each shard of that list a file
to which a line is appended when an image's map and overlay are written. When all images are done, the results are in
`OUT/predictions.jsonl`, and only the plan is left. A prediction that is added to an earlier one keeps the lines of the
earlier one beside the plan until then.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from metalad.data.images import MAPS, OVERLAYS, RESULTS
from metalad.data.reading import FULL_RANGE
from metalad.data.walking import JOURNAL
from metalad.pipelines.predict.formats import other_formats
from metalad.pipelines.predict.output_names import SUFFIXES
from metalad.pipelines.predict.sources import Source
from metalad.results.prediction import SavedPrediction
from metalad.results.regions import Region
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import RunError
from metalad.runtime.files import delete_temporaries, os_errors_as_run_errors, replacing, write_json
from metalad.runtime.progress import logger
from metalad.storage.run_folder import require_same

_SAME_TO_APPEND = "append with the same, replace the results with --overwrite, or choose another folder"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a prediction; a resumed one must have the same, or its results would be of two kinds.

    format: of the shards' lines; 1 was metalad 0.1. model: SHA-256 of the model file. paths: SHA-256 of the paths.
    torch_threads: threads of the engine in each worker. shard: images of a shard. images: their total number.
    white_level: of 16-bit files, from the model. every: of videos, each so many-th frame.
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
    white_level: int = FULL_RANGE
    every: int = 1


@dataclass(frozen=True)
class Shard:
    """Consecutive images, and the file of their results."""

    number: int
    sources: Sequence[Source]
    file: Path


class Journal:
    """The folder of one prediction into `out`."""

    def __init__(self, out: Path) -> None:
        self.out, folder = out, out / JOURNAL
        self.lock, self._plan = folder / "lock", folder / "plan.json"
        self._list, self._shards = folder / "sources.jsonl", folder / "shards"
        self._earlier = folder / "earlier.jsonl"
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

    def require_unused(self) -> None:
        """Check that the folder holds no results, whose pictures would be mixed with new ones.

        Raises:
            RunError: it does; the text names the options that decide what happens to them.
        """
        if self._plan.exists() and not self.finished:
            raise RunError(
                f"{self.out} holds an unfinished prediction; continue it with --resume, replace it with --overwrite, "
                "or choose another --out"
            )
        files = (self.results, *other_formats(self.results))
        pictures = (folder for folder in (self.out / MAPS, self.out / OVERLAYS) if _has_entries(folder))
        for path in (*(file for file in files if file.exists()), *pictures):
            raise RunError(
                f"{path} exists; add to the results there with --append, replace them with --overwrite, or choose "
                "another --out"
            )

    def remove_results(self) -> None:
        """Delete what predictions into this folder wrote, finished or not, and nothing else."""
        self.clean()
        with os_errors_as_run_errors(self.out):
            for folder in (self.out / MAPS, self.out / OVERLAYS):
                for name in self._written(folder):
                    (folder / name).unlink(missing_ok=True)
                    _remove_empty((folder / name).parent, self.out)
            for file in (*other_formats(self.results), self.results, self._plan, self._list, self._earlier):
                file.unlink(missing_ok=True)  # the results after the pictures, which are found in them

    def _written(self, folder: Path) -> Iterator[Path]:
        """Yield the pictures in a folder of outputs that results or an unfinished list name, relative to it."""
        for file in (self.results, self._earlier):
            for line in _lines(file):
                for path in (line.get("map"), line.get("overlay")):
                    found = _below(folder, Path(path)) if path else None
                    if found is not None:
                        yield found
        for _, name in _lines(self._list):
            yield from (Path(name + suffix) for suffix in SUFFIXES)

    def begin(self, plan: Plan, sources: Iterable[Source], sharded: int) -> Plan:
        """Store the list of sources, and return the plan with the number of images.

        sharded: the number of processes that the images are distributed over, 0 for none.
        """
        with os_errors_as_run_errors(self._list):
            self._plan.unlink(missing_ok=True)  # first: without it nothing else is used
        self._clear()
        with replacing(self._list) as temporary:
            plan = _listed(plan, sources, sharded, temporary)
        write_json(self._plan, dataclasses.asdict(plan))
        return plan

    def begin_appended(self, plan: Plan, sources: Iterable[Source], sharded: int) -> Plan:
        """Begin a prediction whose results are added to those in the folder, as `begin` does.

        Images that have a score already are left out. Those that could not be read are tried again.

        Raises:
            RunError: the earlier prediction is not finished, has no record, or was made with another model, scoring or
                threshold.
        """
        old = self.plan()
        if old is None and not self.results.exists():
            return self.begin(plan, sources, sharded)
        if old is None:
            raise RunError(f"{self.out} has results without a record of their settings; choose another --out")
        if not self.finished:
            raise RunError(f"{self.out} holds an unfinished prediction; finish it with --resume before --append")
        same = ("model", "scoring", "threshold")
        require_same(self.out, vars(old), {name: getattr(plan, name) for name in same}, _SAME_TO_APPEND)
        self._clear()
        with replacing(self._list) as temporary:
            scored = {_path_hash(line["path"]) for line in _lines(self.results) if "score" in line}
            left = _Unscored(sources, scored)
            plan = _listed(plan, left, sharded, temporary)
            if left.omitted:
                logger.info("%d images have results in %s already and are left out", left.omitted, self.out)
            again = {_path_hash(path) for path, _ in _lines(temporary)}
            with replacing(self._earlier) as kept, kept.open("w", encoding="utf-8") as file:
                for line in _lines(self.results):
                    if _path_hash(line["path"]) not in again:
                        file.write(json.dumps(line) + "\n")
            write_json(self._plan, dataclasses.asdict(plan))  # before the list, without which it counts as finished
        return plan

    def _clear(self) -> None:
        with os_errors_as_run_errors(self._list):
            shutil.rmtree(self._shards, ignore_errors=True)
            self._earlier.unlink(missing_ok=True)
            delete_temporaries(self.out)
            delete_temporaries(self._list.parent)

    def earlier_lines(self) -> Iterator[str]:
        """Yield the lines of the results that this prediction is added to."""
        if self._earlier.exists():
            with self._earlier.open(encoding="utf-8") as lines:
                yield from lines

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
            self._earlier.unlink(missing_ok=True)

    def recorded(self, plan: Plan) -> Iterator[SavedPrediction]:
        """Yield the results of a finished prediction."""
        with self.results.open(encoding="utf-8") as lines:
            for line in lines:
                yield SavedPrediction.from_dict(json.loads(line), plan.threshold)


class _Unscored:
    """Iterates over the sources that have no score yet, and counts the others."""

    def __init__(self, sources: Iterable[Source], scored: set[int]) -> None:
        self._sources, self._scored, self.omitted = sources, scored, 0

    def __iter__(self) -> Iterator[Source]:
        for source in self._sources:
            if _path_hash(source.path) in self._scored:
                self.omitted += 1
            else:
                yield source


def _listed(plan: Plan, sources: Iterable[Source], sharded: int, file: Path) -> Plan:
    """Write the list of sources into a file, and return the plan with the number of images."""
    count = 0
    with file.open("w", encoding="utf-8") as lines:
        for source in sources:
            lines.write(json.dumps([str(source.path), source.name]) + "\n")
            count += 1
    return dataclasses.replace(plan, images=count, shard=shard_size(count, plan.batch_size, sharded))


def _lines(file: Path) -> Iterator[Any]:
    """Yield the JSON values of a file's lines; nothing if there is no file."""
    if file.exists():
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


def _path_hash(path: str | Path) -> int:
    return hash(os.path.abspath(path))  # noqa: PTH100 (keeps links)


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is not None


def _below(folder: Path, path: Path) -> Path | None:
    """Return the part of a recorded path below a folder of outputs, if the file is there; the folder may have moved."""
    for index, part in enumerate(path.parts):
        below = Path(*path.parts[index + 1 :])
        if part == folder.name and ".." not in below.parts and (folder / below).is_file():
            return below
    return None


def _remove_empty(folder: Path, root: Path) -> None:
    """Delete a folder below `root` if it is empty, and then its parents."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


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
                result.notes,
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
    score, is_anomalous, has_map, suffix, error, regions, size, *notes = line  # metalad 0.2 stored no notes
    map_file = out / MAPS / f"{source.name}.png" if has_map else None
    overlay = out / OVERLAYS / f"{source.name}{suffix}" if suffix else None
    return SavedPrediction(
        path=source.path,
        score=score,
        threshold=threshold,
        is_anomalous=is_anomalous,
        regions=tuple(Region.from_dict(region) for region in regions),
        map=map_file,
        overlay=overlay,
        error=error,
        size=size and tuple(size),
        notes=tuple(notes[0]) if notes else (),
    )
