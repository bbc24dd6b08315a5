"""List what lies in folders, as all layouts need it: good images, images with their masks, rows of a CSV file."""

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from metalad.data.images import find_images
from metalad.data.sample import GOOD, Sample
from metalad.runtime.errors import DataError

Masks = Mapping[str, Path]
"""Masks by the names of the files, without endings, relative to the folder of their defect."""


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones; none if it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """Return all images in a folder and below it; none if it is no folder."""
    return find_images(folder) if folder.is_dir() else []


def good_samples(paths: Iterable[Path]) -> tuple[Sample, ...]:
    """Make a good sample of each image."""
    return tuple(Sample(path, False, GOOD) for path in paths)


def in_order(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Return samples in the order of their paths."""
    return tuple(sorted(samples, key=lambda sample: sample.path.as_posix()))


def samples_by_defect(
    folder: Path, masks: Callable[[str], Masks], *, good: str = GOOD, apart: str | None = None
) -> tuple[Sample, ...]:
    """Make a sample of each image in a folder that has a subfolder for each kind of defect.

    Args:
        folder: the folder; no samples if it is none.
        masks: the masks of a kind of defect.
        good: the subfolder of good images.
        apart: a subfolder that is no kind of defect.
    """
    samples: list[Sample] = []
    for name in subfolders(folder):
        if name == apart:
            continue
        defect = GOOD if name == good else name
        known = {} if defect == GOOD else masks(name)
        for path in find_images(folder / name):
            stem = path.relative_to(folder / name).with_suffix("").as_posix()
            samples.append(Sample(path, defect != GOOD, defect, known.get(f"{stem}_mask", known.get(stem))))
    return tuple(samples)


def mask_files(folder: Path) -> dict[str, Path]:
    """Return the masks in a folder, each a file."""
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in images_in(folder)}


def mask_folders(folder: Path) -> dict[str, Path]:
    """Return the masks in a folder, each a folder of files."""
    return {name: folder / name for name in subfolders(folder)}


def read_rows(listing: Path, heading: str) -> list[tuple[int, list[str]]]:
    """Return the lines of a CSV file that are not blank, the heading first, numbered from 1, their fields stripped.

    Raises:
        DataError: it cannot be read, or has no line below its heading, which should be such as `heading`.
    """
    try:
        with listing.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            stripped = ((reader.line_num, [field.strip() for field in row]) for row in reader)
            rows = [(line, row) for line, row in stripped if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {listing}: {error}; it must be a CSV file in UTF-8") from error
    if len(rows) < 2:
        raise DataError(f"{listing} lists no images; it needs a heading such as {heading} and a line for each")
    return rows
