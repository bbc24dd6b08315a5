"""Decode images once, all to one size, into one array."""

import contextlib
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from metalad.data.images import read_image, read_mask, resize_image
from metalad.data.memory import allocate, available_memory
from metalad.data.sample import Sample
from metalad.runtime.errors import DataError, ImageError


@dataclass(frozen=True)
class Skipped:
    """An image file that could not be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images of one size, in the order of their samples.

    `sizes` are the original (height, width) of each; `skipped` are the files that could not be read, which
    have neither sample nor pixels here.
    """

    samples: tuple[Sample, ...]
    pixels: UInt8[np.ndarray, "n height width 3"]
    skipped: tuple[Skipped, ...]
    sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.samples)


def load_images(
    samples: Sequence[Sample],
    size: tuple[int, int],
    *,
    memory_limit: int | None = None,
    cache: Path | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Images:
    """Decode the samples' images in parallel and resize them; an unreadable one is skipped and named.

    Args:
        samples: the images, at least one.
        size: height and width, in pixels, to resize to.
        memory_limit: bytes of pixels to hold in memory, half of what is available by default; more go to a
            scratch file mapped into memory.
        cache: folder for that scratch file, a temporary one by default.
        strict: let the first unreadable image raise.
        progress: show a progress bar on the terminal.

    Raises:
        DataError: no samples, or none can be read.
        ImageError: an image cannot be read, and `strict` is set.
        RunError: the scratch file cannot be written.
    """
    if not samples:
        raise DataError("no images to load; give at least one")
    limit = available_memory() // 2 if memory_limit is None else memory_limit
    pixels = allocate((len(samples), *size, 3), limit, cache)
    kept: list[Sample] = []
    sizes: list[tuple[int, int]] = []
    skipped: list[Skipped] = []
    # Closing cancels what waits; else a kept traceback would keep the threads decoding behind a progress bar.
    with contextlib.closing(_decode_all(samples, size)) as results:
        bar = tqdm(results, "reading images", len(samples), disable=not progress, leave=False)
        for sample, result in zip(samples, bar, strict=True):
            if isinstance(result, ImageError):
                if strict:
                    raise result
                skipped.append(Skipped(sample.path, _reason(sample.path, result)))
                continue
            pixels[len(kept)], original = result
            kept.append(sample)
            sizes.append(original)
    if not kept:
        first = skipped[0]
        raise DataError(f"none of {len(samples)} images can be read; the first, {first.path}: {first.reason}")
    return Images(tuple(kept), pixels[: len(kept)], tuple(skipped), tuple(sizes))


def read_truth(sample: Sample, size: tuple[int, int]) -> Bool[np.ndarray, "height width"] | None:
    """Return a sample's ground truth at its image's own size; None for an abnormal image that has none.

    Raises:
        ImageError: the mask cannot be read. DataError: the mask's size is not `size`.
    """
    if not sample.abnormal:
        return np.zeros(size, dtype=bool)
    return None if sample.mask is None else read_mask(sample.mask, size)


_Decoded = tuple[UInt8[np.ndarray, "height width 3"], tuple[int, int]]


def _decode_all(samples: Sequence[Sample], size: tuple[int, int]) -> Generator[_Decoded | ImageError, None, None]:
    """Decode in threads, as Pillow works without the interpreter's lock; yield in order."""

    def decode(sample: Sample) -> _Decoded | ImageError:
        try:
            image = read_image(sample.path)
        except ImageError as error:
            return error
        return resize_image(image, size), (image.shape[0], image.shape[1])

    # Few threads, as each may hold a large image at full resolution.
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
        yield from pool.map(decode, samples)


def _reason(path: Path, error: ImageError) -> str:
    """The error's text without the path, which stands beside it."""
    return str(error).split(f"{path.name}: ", 1)[-1]
