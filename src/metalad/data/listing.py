"""Functions for all layouts: list good images, images with masks, and the rows of a CSV file."""

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from metalad.data.images import find_images
from metalad.data.sample import GOOD, Sample
from metalad.runtime.errors import DataError

Masks = Mapping[str, Path]
"""Masks by their file names without suffix, relative to the folder of their defect type."""


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the subfolders that are not hidden; an empty list if `folder` is not a folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """Return all images in a folder and its subfolders; an empty list if it is not a folder."""
    return find_images(folder) if folder.is_dir() else []


def good_samples(paths: Iterable[Path]) -> tuple[Sample, ...]:
    """Return a good sample for each image."""
    return tuple(Sample(path, False, GOOD) for path in paths)


def in_order(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Return the samples sorted by path."""
    return tuple(sorted(samples, key=lambda sample: sample.path.as_posix()))


def samples_by_defect(
    folder: Path, masks: Callable[[str], Masks], *, good: str = GOOD, ignored: str | None = None
) -> tuple[Sample, ...]:
    """Return a sample for each image in a folder with one subfolder per defect type.

    Args:
        folder: the folder; if it does not exist, there are no samples.
        masks: returns the masks of a defect type.
        good: name of the subfolder of good images.
        ignored: name of a subfolder that is not a defect type.
    """
    samples: list[Sample] = []
    for name in subfolders(folder):
        if name == ignored:
            continue
        defect = GOOD if name == good else name
        known = {} if defect == GOOD else masks(name)
        for path in find_images(folder / name):
            stem = path.relative_to(folder / name).with_suffix("").as_posix()
            samples.append(Sample(path, defect != GOOD, defect, known.get(f"{stem}_mask", known.get(stem))))
    return tuple(samples)


def mask_files(folder: Path) -> dict[str, Path]:
    """Return the masks in a folder with one file per image."""
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in images_in(folder)}


def mask_folders(folder: Path) -> dict[str, Path]:
    """Return the masks in a folder with one subfolder of mask files per image."""
    return {name: folder / name for name in subfolders(folder)}


def read_rows(listing: Path, heading: str) -> list[tuple[int, list[str]]]:
    """Return the non-empty rows of a CSV file, including the header, with line numbers from 1 and stripped fields.

    Raises:
        DataError: the file cannot be read, or has no row below its header; the text gives `heading` as an example.
    """
    try:
        with listing.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            stripped = ((reader.line_num, [field.strip() for field in row]) for row in reader)
            rows = [(line, row) for line, row in stripped if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {listing}: {error}; it must be a CSV file in UTF-8") from error
    if len(rows) < 2:
        raise DataError(f"{listing} lists no images; it needs a header such as {heading} and one line for each image")
    return rows
