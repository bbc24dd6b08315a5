"""Detect the layout of an image folder, and list its samples."""

import os
from pathlib import Path

from metalad.data.head_ct import LABELS, read_labelled
from metalad.data.images import IMAGE_SUFFIXES, find_images, require_folder
from metalad.data.listing import good_samples, mask_files, samples_by_defect, subfolders
from metalad.data.own_layouts import own_layout
from metalad.data.sample import GOOD, Category, Sample
from metalad.runtime.errors import DataError

PLAIN = "folder"
"""The layout of a folder that matches no known layout; all of its images are assumed to be good."""
_ENDINGS = " ".join(sorted(IMAGE_SUFFIXES))


def read_category(root: Path, *, seed: int = 0) -> Category:
    """List the images of one category. The layout of its folder is detected.

    - "mvtec": `train/good`, `test/DEFECT` and `ground_truth/DEFECT/STEM_mask.png` (or `STEM.png`), as in
      MVTec AD; train or test may be missing, and also the masks.
    - "head-ct": a `labels.csv` with image and label (0 good, 1 anomalous); the images are in `images` or in the same
      folder. The test images are a fifth of the good images, selected with `seed`, and all anomalous images.
    - the layout of a published data set, see `metalad.data.own_layouts`; `seed` is used if no split was published.
    - "folder": any other folder of images, including subfolders; all images are good training images.

    Raises:
        DataError: no usable images; the text states what was expected and what the folder contains.
    """
    require_folder(root)
    try:
        return _read(root, seed)
    except OSError as error:
        raise DataError(f"cannot read the folder {root}: {error}; check its permissions") from error


def _read(root: Path, seed: int) -> Category:
    name = root.resolve().name
    own = own_layout(root)
    if own is not None:
        listing = own.read(root, seed)
        if not any(listing):
            raise DataError(f"{root} has the layout of {own.name}, but contains no images; copy the data set again")
        return Category(name, root, own.name, *listing)
    if (root / "train" / GOOD).is_dir() or (root / "test").is_dir():
        train, test = _read_train(root), _read_test(root)
        if not train and not test:
            _require_images(root / "test")
        return Category(name, root, "mvtec", train, test)
    if (root / LABELS).is_file():
        train, test = read_labelled(root, seed)
        return Category(name, root, "head-ct", train, test)
    _reject_mixed_folder(root)
    return Category(name, root, PLAIN, good_samples(_require_images(root)), ())


def _read_train(root: Path) -> tuple[Sample, ...]:
    folder = root / "train" / GOOD
    if folder.is_dir():
        return good_samples(_require_images(folder))
    if (root / "train").is_dir():
        raise DataError(f"no folder {folder}, which must contain the good images; found {_contents(folder.parent)}")
    return ()


def _read_test(root: Path) -> tuple[Sample, ...]:
    folder = root / "test"
    samples = samples_by_defect(folder, lambda defect: mask_files(root / "ground_truth" / defect))
    if not samples and folder.is_dir() and find_images(folder):
        raise DataError(f"the images in {folder} must be in subfolders: {GOOD}, and one for each defect type")
    return samples


def _require_images(folder: Path) -> list[Path]:
    images = find_images(folder)
    if not images:
        raise DataError(f"no images in {folder}: expected files with {_ENDINGS}, found {_contents(folder)}")
    return images


def _reject_mixed_folder(root: Path) -> None:
    """Reject a folder whose images are probably not all good, because anomalous training images degrade the model."""
    names = subfolders(root)
    categories = [name for name in names if _is_category(root / name)]
    if categories:
        raise DataError(f"{root} contains several categories; give one of them: {', '.join(categories[:20])}")
    if GOOD in names and len(names) > 1:
        others = ", ".join(name for name in names if name != GOOD)
        raise DataError(
            f"{root} contains {GOOD} and other images ({others}); to train, give {root / GOOD}; "
            f"to test, move these folders into a folder named test, and give its parent folder"
        )


def _is_category(folder: Path) -> bool:
    try:
        return (folder / "train" / GOOD).is_dir() or own_layout(folder) is not None
    except OSError:  # an unreadable folder is reported when its images are listed
        return False


def _contents(folder: Path) -> str:
    """Describe the contents of a folder and its subfolders, for an error message."""
    files = [name for _, _, names in os.walk(folder) for name in names]
    if files:
        return f"{len(files)} other files such as {min(files)}"
    names = subfolders(folder)
    return f"only empty folders such as {names[0]}" if names else "an empty folder"
