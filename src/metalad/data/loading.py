"""Decode images, resize them to one size, and store them in one array."""

import contextlib
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from metalad.data.framing import Framing
from metalad.data.images import Mask, inspect_mask, read_image
from metalad.data.likeness import is_single_color, pixel_hash
from metalad.data.memory import allocate, available_memory
from metalad.data.reading import FULL_RANGE, Reading
from metalad.data.sample import Sample
from metalad.runtime.errors import DataError, ImageError
from metalad.runtime.progress import counted


@dataclass(frozen=True)
class Skipped:
    """An image file that could not be read, and the reason."""

    path: Path
    reason: str


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images of one size, in the order of their samples.

    sizes: original (height, width) of each image. skipped: files that could not be read; they are not in the other
    fields. hashes: of each image's pixels, see `pixel_hash`. single_color: whether all pixels of an image are equal.
    white_level: with which 16-bit files were read.
    """

    samples: tuple[Sample, ...]
    pixels: UInt8[np.ndarray, "n height width 3"]
    skipped: tuple[Skipped, ...]
    sizes: tuple[tuple[int, int], ...]
    hashes: tuple[str, ...] = ()
    single_color: tuple[bool, ...] = ()
    white_level: int = FULL_RANGE

    def __len__(self) -> int:
        return len(self.samples)

    def without_images(self) -> "Images":
        """Return the same without any image."""
        return Images((), self.pixels[:0], (), (), white_level=self.white_level)


def load_images(
    samples: Sequence[Sample],
    framing: Framing | tuple[int, int],
    *,
    memory_limit: int | None = None,
    cache: Path | None = None,
    strict: bool = False,
    progress: bool = False,
    reading: Reading | None = None,
) -> Images:
    """Decode the images of the samples in parallel and resize them; unreadable images are skipped and listed.

    Args:
        samples: the images, at least one.
        framing: the size of the arrays, and how images are placed in them; height and width: they are resized.
        memory_limit: maximum bytes of pixels in memory, by default half of the available memory; a larger array is
            stored in a memory-mapped temporary file.
        cache: folder for that file; by default, the folder for temporary files of the system.
        strict: raise an error for the first unreadable image.
        progress: show progress on stderr.
        reading: how the files are read, see `read_image`; by default not strict, with all 16 bits.

    Raises:
        DataError: no samples, or none can be read.
        ImageError: an image cannot be read, and `strict` is set.
        RunError: the temporary file cannot be written.
    """
    if not samples:
        raise DataError("no images to load; give at least one")
    reading = reading or Reading()
    framing = framing if isinstance(framing, Framing) else Framing(framing)
    limit = available_memory() // 2 if memory_limit is None else memory_limit
    pixels = allocate((len(samples), *framing.size, 3), limit, cache)
    decoded: list[Sample] = []
    facts: list[_Facts] = []
    skipped: list[Skipped] = []
    # Closing the generator cancels the pending decoding, also if the traceback of an error keeps a reference to it.
    with contextlib.closing(_decode_all(samples, framing, reading)) as results:
        counting = counted(results, "reading images", "image", len(samples), shown=progress)
        for sample, result in zip(samples, counting, strict=True):
            if isinstance(result, ImageError):
                if strict:
                    raise result
                skipped.append(Skipped(sample.path, result.reason))
                continue
            pixels[len(decoded)] = result.pixels
            decoded.append(sample)
            facts.append(result.facts)
    if not decoded:
        first = skipped[0]
        raise DataError(f"none of {len(samples)} images can be read; the first, {first.path}: {first.reason}")
    return Images(
        samples=tuple(decoded),
        pixels=pixels[: len(decoded)],
        skipped=tuple(skipped),
        sizes=tuple(each.size for each in facts),
        hashes=tuple(each.hash for each in facts),
        single_color=tuple(each.single_color for each in facts),
        white_level=reading.white_level,
    )


def read_truth(sample: Sample, size: tuple[int, int]) -> Bool[np.ndarray, "height width"] | None:
    """Return the ground truth of a sample at the original size; None for an anomalous image without a mask.

    Raises:
        ImageError: the mask cannot be read. DataError: the mask's size is not `size`.
    """
    mask = inspect_truth(sample, size)
    return None if mask is None else mask.pixels


def inspect_truth(sample: Sample, size: tuple[int, int]) -> Mask | None:
    """Return the ground truth as `read_truth` does, and whether its file was cut at half brightness."""
    if not sample.abnormal:
        return Mask(np.zeros(size, dtype=bool), is_cut=False)
    return None if sample.mask is None else inspect_mask(sample.mask, size)


class _Facts(NamedTuple):
    size: tuple[int, int]
    hash: str
    single_color: bool


class _Loaded(NamedTuple):
    pixels: UInt8[np.ndarray, "height width 3"]
    facts: _Facts


def _decode_all(
    samples: Sequence[Sample], framing: Framing, reading: Reading
) -> Generator[_Loaded | ImageError, None, None]:
    """Decode in threads (Pillow releases the global interpreter lock); yield in the order of the samples."""

    def decode(sample: Sample) -> _Loaded | ImageError:
        try:
            image = read_image(sample.path, reading)
        except ImageError as error:
            return error
        height, width, _ = image.shape
        facts = _Facts((height, width), pixel_hash(image), is_single_color(image))
        return _Loaded(framing.place(image), facts)

    # The number of threads is limited, because each may hold a large image at full resolution.
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
        yield from pool.map(decode, samples)
