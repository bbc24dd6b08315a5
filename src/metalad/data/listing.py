"""Functions for all layouts: list good images and images with masks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from metalad.data.images import find_images
from metalad.data.masks import is_in_mask_folder, masks_beside
from metalad.data.names import is_good, role, same_name
from metalad.data.sample import GOOD, Sample
from metalad.data.text import number_of
from metalad.data.walking import derived_folder, is_ignored
from metalad.runtime.errors import DataError

Masks = Mapping[str, Path]
"""Masks by their file names without suffix, relative to the folder of their defect type, in one Unicode form."""


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the subfolders with images of their own; an empty list if `folder` is not a folder.

    Ignored folders, and those of thumbnails and of metalad's overlays and maps, are left out.
    """
    if not folder.is_dir():
        return []
    paths = (path for path in folder.iterdir() if not is_ignored(path.name) and path.is_dir())
    return sorted(path.name for path in paths if derived_folder(path) is None)


def subfolder_named(folder: Path, name: str) -> Path:
    """Return the subfolder with a name, also if only the Unicode form of its name differs."""
    if (folder / name).is_dir():
        return folder / name
    same = [other for other in subfolders(folder) if same_name(other) == same_name(name)]
    return folder / (same[0] if same else name)


def images_in(folder: Path) -> list[Path]:
    """Return all images in a folder and its subfolders; an empty list if it is not a folder."""
    return find_images(folder) if folder.is_dir() else []


def products_in(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders without masks, beside them or in folders; see `images_in`."""
    paths = images_in(folder)
    masks = set(masks_beside(paths).values())
    return [path for path in paths if path not in masks and not is_in_mask_folder(folder, path)]


def require_one_kind(folder: Path, paths: Iterable[Path], other: Literal["good", "bad"]) -> None:
    """Check that no subfolder of good images has the name of bad ones, or the other way round.

    Args:
        folder: the folder that decides whether its images are good.
        paths: its images.
        other: the role that no subfolder may have.

    Raises:
        DataError: one has.
    """
    for parent in sorted({path.parent for path in paths}):
        if any(role(name) == other for name in parent.relative_to(folder).parts):
            names = ("anomalous", "good") if other == "bad" else ("good", "anomalous")
            raise DataError(
                f"{parent} has the name of {names[0]} images, but all images in {folder} count as {names[1]}; move it "
                "out of that folder, or rename it"
            )


def good_samples(paths: Iterable[Path]) -> tuple[Sample, ...]:
    """Return a good sample for each image."""
    return tuple(Sample(path, False, GOOD) for path in paths)


def in_order(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Return the samples sorted by path."""
    return tuple(sorted(samples, key=lambda sample: sample.path.as_posix()))


def samples_by_defect(folder: Path, masks: Callable[[str], Masks], *, ignored: str | None = None) -> tuple[Sample, ...]:
    """Return a sample for each image in a folder with one subfolder per defect type.

    Images in subfolders named good, or a synonym such as OK, are good. A mask may also lie beside its image. A
    subfolder of masks is not a defect type.

    Args:
        folder: the folder; if it does not exist, there are no samples.
        masks: returns the masks of a defect type.
        ignored: name of a subfolder that is not a defect type.

    Raises:
        DataError: a subfolder further below contradicts that of its defect type, such as `camera1/OK`.
    """
    samples: list[Sample] = []
    for name in subfolders(folder):
        if name == ignored or is_folder_of_masks(folder / name):
            continue
        defect = GOOD if is_good(name) else name
        known = {} if defect == GOOD else masks(name)
        paths = find_images(folder / name)
        require_one_kind(folder / name, paths, "bad" if defect == GOOD else "good")
        beside = masks_beside(paths)
        not_products = set(beside.values())
        for path in paths:
            if path not in not_products:
                mask = _mask_of(path, folder / name, known) or beside.get(path)
                samples.append(Sample(path, defect != GOOD, defect, None if defect == GOOD else mask))
    return tuple(samples)


def is_folder_of_masks(folder: Path) -> bool:
    """Return whether a folder has a name of masks, and its first image is one: a defect may be called "label"."""
    if role(folder.name) != "mask":
        return False
    first = next(iter(find_images(folder)), None)
    return first is not None and is_in_mask_folder(folder, first)


def _mask_of(path: Path, folder: Path, masks: Masks) -> Path | None:
    stem = same_name(path.relative_to(folder).with_suffix("").as_posix())
    return masks.get(f"{stem}_mask", masks.get(stem))


def mask_files(folder: Path) -> dict[str, Path]:
    """Return the masks in a folder with one file per image."""
    return {same_name(path.relative_to(folder).with_suffix("").as_posix()): path for path in images_in(folder)}


def mask_folders(folder: Path) -> dict[str, Path]:
    """Return the masks in a folder with one subfolder of mask files per image, or one file per image as in MVTec AD."""
    files = {stem: path for stem, path in mask_files(folder).items() if path.parent == folder}
    return files | {same_name(name): folder / name for name in subfolders(folder)}


def list_notes(listing: Path, missing: int, unlisted: Sequence[Path]) -> tuple[str, ...]:
    """Return lines about the rows of a list that have no image, and about the images that are not in the list."""
    notes = []
    if missing:
        notes.append(f"{number_of(missing, 'row')} of {listing} without an image")
    if unlisted:
        notes.append(f"{number_of(len(unlisted), 'image')} not listed in {listing} and not used, such as {unlisted[0]}")
    return tuple(notes)
