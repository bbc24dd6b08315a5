"""Judge images and write their anomaly maps, in one process and in memory that does not grow with their number.

Images are decoded one by one, judged in batches, drawn and written one by one. One pool of threads does all three,
handing images on in order, each stage at most a little ahead of the next.
"""

import os
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image

from metalad.data.images import MAPS, OVERLAYS, read_image, resize_image, resize_map
from metalad.detectors.base import Detector, Scoring
from metalad.nn.pixels import to_batch
from metalad.pipelines.predict.sources import Source
from metalad.runtime.errors import ImageError
from metalad.runtime.files import replacing
from metalad.visualization.maps import OUTLINE_COLOUR, RATIO_OCTAVES, contour, outline_width, overlay

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

    @classmethod
    def from_json(cls, values: Mapping[str, Any], threshold: float) -> "PredictedImage":
        """Rebuild a result from what `to_json` returned, which has no threshold where there is an error."""
        found: dict[str, Any] = {name: values.get(name) for name in ("score", "abnormal", "error")}
        for name in ("map", "overlay"):
            found[name] = None if values.get(name) is None else Path(values[name])
        return cls(path=Path(values["path"]), threshold=threshold, **found)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object: path, score, threshold, abnormal, map and overlay; or path and error alone."""
        if self.error is not None:
            return {"path": str(self.path), "error": self.error}
        files = {"map": self.map, "overlay": self.overlay}
        return {
            **{"path": str(self.path), "score": self.score, "threshold": self.threshold, "abnormal": self.abnormal},
            **{name: None if file is None else str(file) for name, file in files.items()},
        }


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
            images = to_batch(padded, self.detector.device)
            prediction = self.detector.judge(images, self.detector.residuals(images), self.scoring)
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
        return PredictedImage(source.path, None, self.threshold, None, None, None, reason_of(error, source.path))


def reason_of(error: ImageError, path: Path) -> str:
    """Return why an image cannot be read, without its path."""
    return str(error).removeprefix(str(ImageError(f"cannot read {path}:"))).strip()


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


@dataclass(frozen=True)
class Crew:
    """So many threads read, judge and write; each has so many of torch's for a matrix product.

    The latter decide the last bits of a score; the former none.
    """

    workers: int
    torch_threads: int

    @classmethod
    def of_machine(cls) -> "Crew":
        """Return as many as there are cores, but few that hold an image each."""
        cores = os.cpu_count() or 1
        workers = min(cores, MAX_WORKERS)
        # Threads of one matrix product that wait for each other cost more than half of the time of busy cores.
        return cls(workers, max(1, cores // workers))


def predict_sources(
    judge: Judge, sources: Iterable[Source], writer: Writer, crew: Crew | None = None
) -> Generator[PredictedImage, None, None]:
    """Judge the sources in order with a detector that is already in memory, and write their maps and overlays.

    Between a source taken and its result yielded are at most as many batches as there are workers, and three more.
    The crew is that of the whole machine by default. Raises as `predict` does.
    """
    crew = crew or Crew.of_machine()
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(crew.workers, "predict", torch.set_num_threads, (crew.torch_threads,))
    ahead = max(judge.batch_size, crew.workers)
    try:
        read = _in_order(pool, lambda source: _read(source, judge.size, writer.overlays), sources, ahead)
        batches = _in_order(pool, judge.judge, _batches(read, judge.batch_size), crew.workers)
        yield from _in_order(pool, writer.write, chain.from_iterable(batches), ahead)
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
