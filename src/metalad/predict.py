"""Judge images and write their anomaly maps, in memory that does not grow with their number.

Images are decoded one by one, judged in batches, drawn and written one by one. One pool of threads does all three,
handing images on in order, each stage at most a little ahead of the next.
"""

import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image
from tqdm import tqdm

from metalad.detector import Detector, Scoring, to_batch
from metalad.device import choose_device
from metalad.drawing.maps import OUTLINE_COLOUR, RATIO_OCTAVES, contour, outline_width, overlay
from metalad.errors import ConfigError, DataError, ImageError
from metalad.files import replacing
from metalad.images import IMAGE_SUFFIXES, MAPS, OVERLAYS, RESULTS, iter_images, read_image, resize_image, resize_map
from metalad.model_file import read_model

MAP_STEPS = 16384
"""A map file's value at the threshold: 65535, its highest, stands for four thresholds and more."""
JPEG_QUALITY = 90
JPEG_MAX_SIDE = 65_500
"""No JPEG is wider; an overlay beyond it is a PNG."""
BAND = 64
"""Rows drawn at once: few, as blending takes 50 bytes a pixel and is faster where they fit the cache."""
MAX_WORKERS = 8
"""Few, as each may hold a large image at full resolution."""
KEPT_PIXELS = 1_000_000
"""A larger image is decoded a second time for its overlay instead of being held until then."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PredictedImage:
    """What was found in one image.

    score: higher = more abnormal; None where the image could not be read.
    threshold: the score above which an image is abnormal.
    map, overlay: the files written, None where they were not.
    error: why the image could not be read, else None.
    """

    path: Path
    score: float | None
    threshold: float
    abnormal: bool | None
    map: Path | None
    overlay: Path | None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object: path, score, threshold, abnormal, map and overlay; or path and error alone."""
        if self.error is not None:
            return {"path": str(self.path), "error": self.error}
        files = {"map": self.map, "overlay": self.overlay}
        return {
            **{"path": str(self.path), "score": self.score, "threshold": self.threshold, "abnormal": self.abnormal},
            **{name: None if file is None else str(file) for name, file in files.items()},
        }


def predict(
    run: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    scoring: Scoring | None = None,
    false_alarms: float | None = None,
    batch_size: int = 16,
    strict: bool = False,
    maps: bool = True,
    overlays: bool = True,
    device: str = "auto",
    progress: bool = False,
) -> Generator[PredictedImage, None, None]:
    """Judge images one after the other, in the order given, and write a map and an overlay of each into `out`.

    `predictions.jsonl` there holds the results, a JSON object a line; it appears when the last is out. Stop by
    closing the generator: all files written are whole.

    Args:
        run: a run folder or a model file.
        paths: images, and folders whose images are found at any depth.
        out: gets `maps/` and `overlays/`, which mirror the folders of the images.
        scoring: `calibrated` or `raw` to judge by, the model's own by default.
        false_alarms: wanted fraction of good images above the threshold, the model's own by default.
        batch_size: images judged at once; memory grows with it, and by a hash of a name with each image.
        strict: let the first unreadable image be an error instead of a result that names it.
        maps: write the anomaly maps, 16-bit grey PNG files of the images' own sizes; 16384 is the threshold.
        overlays: write the images with the map laid over them, and an outline where it exceeds the threshold.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        progress: show a progress bar on the terminal.

    Raises:
        ModelFileError: no usable model. DataError: no images there. ConfigError: a setting that cannot be.
        ImageError: an image cannot be read, and `strict` is set. RunError: `out` cannot be written.
        The first three at the call, the others while results are taken.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    model = read_model(run, str(choose_device(device)))
    judge = Judge(model.detector, model.scoring(scoring), model.threshold(false_alarms, scoring), batch_size)
    writer = Writer(out, judge.threshold, strict, maps, overlays)
    return predict_sources(judge, find_sources(paths, out), writer, progress=progress)


# Which images, and what their maps are called


@dataclass(frozen=True)
class Source:
    """An image file, and what its outputs are called: a relative path without a suffix."""

    path: Path
    name: str


def find_sources(paths: Sequence[Path], out: Path) -> Iterator[Source]:
    """Yield the images among `paths` and in the folders among them, in order, each with a name of its own.

    Names mirror the path below the folder given; below the folder that they share, if several paths are given. What
    lies in the maps and overlays of `out` is left out: they are results, and may be growing.

    Raises:
        DataError: a path does not exist, or there are no images (at the call); a folder cannot be read (later).
    """
    for path in paths:
        try:
            path.stat()
        except OSError as error:
            raise DataError(f"cannot reach {path}: {error.strerror}; check the path and its permissions") from error
    own = tuple(Path(os.path.realpath(out / name)) for name in (MAPS, OVERLAYS))
    images = (image for image in _images(paths) if not _lies_in(image, own))
    first = next(images, None)
    if first is None:
        where = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
        raise DataError(f"no images in {where}; looked for files named {' '.join(sorted(IMAGE_SUFFIXES))}")
    return _named(chain([first], images), _base(paths))


def _images(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from iter_images(path) if path.is_dir() else (path,)


def _lies_in(image: Path, folders: tuple[Path, ...]) -> bool:
    parent = Path(os.path.realpath(image.parent))
    return any(parent.is_relative_to(folder) for folder in folders)


def _base(paths: Sequence[Path]) -> Path:
    """Return the folder below which names are told: the one given, or the one that all the paths share."""
    if len(paths) == 1 and paths[0].is_dir():
        return _absolute(paths[0])
    try:
        return Path(os.path.commonpath([_absolute(path).parent for path in paths]))
    except ValueError:  # several Windows drives
        return Path(Path.cwd().anchor)


def _absolute(path: Path) -> Path:
    """Return the path without `..`, which a name must not hold, but with its links, as the user sees it."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _named(images: Iterable[Path], base: Path) -> Iterator[Source]:
    # Hashes instead of names: 100,000 take 8 MB, and a false match only lengthens a name.
    taken: set[int] = set()
    for path in images:
        absolute = _absolute(path)
        below = base if absolute.is_relative_to(base) else Path(absolute.anchor)
        stem = absolute.relative_to(below).with_suffix("").as_posix()
        name, number = stem, 1
        # Without case, as some file systems have none; x.png and x.jpg become x and x-2.
        while hash(name.casefold()) in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(hash(name.casefold()))
        yield Source(path, name)


# What is handed from stage to stage


@dataclass(frozen=True, eq=False)
class _Picture:
    """A decoded image at the model's size, its own size, and itself where it is not too large to be held."""

    source: Source
    pixels: UInt8[np.ndarray, "height width 3"]
    size: tuple[int, int]
    image: UInt8[np.ndarray, "_ _ 3"] | None


@dataclass(frozen=True, eq=False)
class _Unreadable:
    source: Source
    error: ImageError


@dataclass(frozen=True, eq=False)
class _Judged:
    picture: _Picture
    score: float
    anomaly_map: Float32[np.ndarray, "height width"]


def _read(source: Source, size: tuple[int, int], keep: bool) -> _Picture | _Unreadable:
    try:
        image = read_image(source.path)
    except ImageError as error:
        return _Unreadable(source, error)
    height, width, _ = image.shape
    held = keep and height * width <= KEPT_PIXELS
    return _Picture(source, resize_image(image, size), (height, width), image if held else None)


@dataclass(frozen=True, eq=False)
class Judge:
    """A detector with what it judges by, and how many images at once."""

    detector: Detector
    scoring: Scoring
    threshold: float
    batch_size: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that the detector takes."""
        return self.detector.config.image_size

    def judge(self, read: Sequence[_Picture | _Unreadable]) -> list[_Judged | _Unreadable]:
        """Run the model over a batch; what could not be read passes through in its place."""
        results = iter(self._run([picture.pixels for picture in read if isinstance(picture, _Picture)]))
        return [item if isinstance(item, _Unreadable) else _Judged(item, *next(results)) for item in read]

    def _run(
        self, pixels: Sequence[UInt8[np.ndarray, "height width 3"]]
    ) -> list[tuple[float, Float32[np.ndarray, "height width"]]]:
        if not pixels:
            return []
        # A batch is always full: libraries may choose another matrix routine, with other last bits, for another size.
        padded = np.zeros((self.batch_size, *self.size, 3), np.uint8)
        padded[: len(pixels)] = pixels
        with torch.inference_mode():
            evidence = self.detector.evidence(to_batch(padded, self.detector.device))
            prediction = self.detector.judge(evidence, self.scoring)
        scores, maps = prediction.score.tolist(), prediction.anomaly_map.numpy(force=True)
        return list(zip(scores[: len(pixels)], maps, strict=False))


# What is written


@dataclass(frozen=True)
class Writer:
    """Where and which files are written of a judged image; the threshold is the maps' unit."""

    out: Path
    threshold: float
    strict: bool = False
    maps: bool = True
    overlays: bool = True

    def write(self, item: _Judged | _Unreadable) -> PredictedImage:
        """Write an image's map and overlay and return what was found; raises as `predict` does."""
        if isinstance(item, _Unreadable):
            return self._tell(item.source, item.error)
        source, map_file, overlay_file = item.picture.source, None, None
        relative = self._in_thresholds(item)
        if self.overlays:
            try:
                overlay_file = self._write_overlay(item.picture, relative)
            except ImageError as error:  # it could be read once, but not again
                return self._tell(source, error)
        if self.maps:
            map_file = self.out / MAPS / f"{source.name}.png"
            _save(map_file, to_steps(relative))
        abnormal = item.score > self.threshold
        return PredictedImage(source.path, item.score, self.threshold, abnormal, map_file, overlay_file)

    def _in_thresholds(self, item: _Judged) -> Float32[np.ndarray, "height width"]:
        """Return the map in units of the threshold, at the image's own size if a file needs it."""
        # Clipped in double precision: a tiny threshold would make single precision overflow.
        relative = np.minimum(item.anomaly_map.astype(np.float64) / self.threshold, 1e6).astype(np.float32)
        return resize_map(relative, item.picture.size) if self.maps or self.overlays else relative

    def _write_overlay(self, picture: _Picture, relative: Float32[np.ndarray, "height width"]) -> Path:
        image = read_image(picture.source.path) if picture.image is None else picture.image
        if image.shape[:2] != picture.size:
            raise ImageError(f"cannot read {picture.source.path}: it was replaced by another while it was judged")
        suffix = ".jpg" if max(picture.size) <= JPEG_MAX_SIDE else ".png"
        file = self.out / OVERLAYS / (picture.source.name + suffix)
        _save(file, draw_overlay(image, relative))
        return file

    def _tell(self, source: Source, error: ImageError) -> PredictedImage:
        if self.strict:
            raise error
        reason = str(error).removeprefix(f"cannot read {source.path}: ")
        return PredictedImage(source.path, None, self.threshold, None, None, None, reason)


def to_steps(relative: Float32[np.ndarray, "height width"]) -> UInt16[np.ndarray, "height width"]:
    """Turn a map in units of the threshold into what a map file holds: 16384 is the threshold, 65535 four and more."""
    steps = np.rint(relative * np.float32(MAP_STEPS))
    return np.clip(steps, 0, np.iinfo(np.uint16).max, out=steps).astype(np.uint16)


def draw_overlay(
    image: UInt8[np.ndarray, "height width 3"], relative: Float32[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return `verdict_overlay` of a map in units of the threshold, in little memory."""
    drawn = image.copy()
    for top in range(0, len(image), BAND):
        rows = slice(top, top + BAND)
        octaves = np.log2(np.maximum(relative[rows], np.finfo(np.float32).tiny))
        if octaves.max() > -RATIO_OCTAVES:
            drawn[rows] = overlay(image[rows], octaves, -RATIO_OCTAVES, RATIO_OCTAVES)
    above = relative > 1
    if above.any():
        drawn[contour(above, outline_width(*above.shape))] = OUTLINE_COLOUR
    return drawn


def _save(path: Path, pixels: UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width"]) -> None:
    jpeg = path.suffix == ".jpg"
    # Runs and Huffman codes alone: four times as fast as zlib's default, for files a tenth larger.
    options = {"quality": JPEG_QUALITY} if jpeg else {"compress_type": zlib.Z_RLE}
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="JPEG" if jpeg else "PNG", **options)


# The stages joined


def predict_sources(
    judge: Judge, sources: Iterable[Source], writer: Writer, *, progress: bool = False
) -> Generator[PredictedImage, None, None]:
    """Judge the sources in order with a detector that is already in memory, and write their files.

    Between a source taken and its result yielded are at most as many batches as there are workers, and three more.
    Raises as `predict` does.
    """
    cores = os.cpu_count() or 1
    workers = min(cores, MAX_WORKERS)
    threads = torch.get_num_threads()
    # Threads of one matrix product that wait for each other cost more than half of the time where all cores are busy.
    pool = ThreadPoolExecutor(workers, "predict", torch.set_num_threads, (max(1, cores // workers),))
    ahead = max(judge.batch_size, workers)
    try:
        read = _in_order(pool, lambda source: _read(source, judge.size, writer.overlays), sources, ahead)
        batches = _in_order(pool, judge.judge, _batches(read, judge.batch_size), workers)
        results = _in_order(pool, writer.write, chain.from_iterable(batches), ahead)
        record = writer.out / RESULTS
        with replacing(record) as temporary, temporary.open("w", encoding="utf-8") as file:
            for result in tqdm(results, "predict", unit="image", disable=not progress, leave=False):
                file.write(json.dumps(result.to_json(), allow_nan=False) + "\n")
                yield result
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads yet to be started would inherit the workers' number


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(islice(items, size)):
        yield batch


def _in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yield `function` of each item in order, worked out by the pool at most `ahead` items early."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
