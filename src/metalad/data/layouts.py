"""Recognize how a folder of images is laid out, and list its samples."""

import os
from pathlib import Path

from metalad.data.head_ct import LABELS, read_labelled
from metalad.data.images import IMAGE_SUFFIXES, find_images, require_folder
from metalad.data.listing import good_samples, mask_files, samples_by_defect, subfolders
from metalad.data.own_layouts import own_layout
from metalad.data.sample import GOOD, Category, Sample
from metalad.runtime.errors import DataError

PLAIN = "folder"
"""The layout of a folder that is recognized by nothing, all of whose images count as good."""
_ENDINGS = " ".join(sorted(IMAGE_SUFFIXES))


def read_category(root: Path, *, seed: int = 0) -> Category:
    """List the images of one category, whatever layout its folder has.

    - "mvtec": `train/good`, `test/DEFECT` and `ground_truth/DEFECT/STEM_mask.png` (or `STEM.png`), as in
      MVTec AD; either of train and test may be missing, and so may masks.
    - "head-ct": a `labels.csv` of image and label (0 good, 1 abnormal), the images in `images` or beside it;
      a fifth of the good images, chosen by `seed`, and all abnormal ones are for the test.
    - one of a published data set's own, in `metalad.data.own_layouts`; `seed` splits what was published unsplit.
    - "folder": any other folder of images, with subfolders; all are good and to train on.

    Raises:
        DataError: nothing usable; the text says what was looked for and what was found.
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
            raise DataError(f"{root} is laid out as {own.name} is, but holds no images; copy the set anew")
        return Category(name, root, own.name, *listing)
    if (root / "train" / GOOD).is_dir() or (root / "test").is_dir():
        train, test = _read_train(root), _read_test(root)
        if not train and not test:
            _some_images(root / "test")
        return Category(name, root, "mvtec", train, test)
    if (root / LABELS).is_file():
        train, test = read_labelled(root, seed)
        return Category(name, root, "head-ct", train, test)
    _refuse_mixed(root)
    return Category(name, root, PLAIN, good_samples(_some_images(root)), ())


def _read_train(root: Path) -> tuple[Sample, ...]:
    folder = root / "train" / GOOD
    if folder.is_dir():
        return good_samples(_some_images(folder))
    if (root / "train").is_dir():
        raise DataError(f"no folder {folder}, which should hold the good images; found {_contents(folder.parent)}")
    return ()


def _read_test(root: Path) -> tuple[Sample, ...]:
    folder = root / "test"
    samples = samples_by_defect(folder, lambda defect: mask_files(root / "ground_truth" / defect))
    if not samples and folder.is_dir() and find_images(folder):
        raise DataError(f"the images in {folder} need subfolders named {GOOD} and after each kind of defect")
    return samples


def _some_images(folder: Path) -> list[Path]:
    images = find_images(folder)
    if not images:
        raise DataError(f"no images in {folder}: looked for {_ENDINGS}, found {_contents(folder)}")
    return images


def _refuse_mixed(root: Path) -> None:
    """Refuse a folder whose images are hardly all good: defects in training spoil the model unseen."""
    below = subfolders(root)
    categories = [name for name in below if _is_category(root / name)]
    if categories:
        raise DataError(f"{root} holds several categories; give one of them: {', '.join(categories[:20])}")
    if GOOD in below and len(below) > 1:
        others = ", ".join(name for name in below if name != GOOD)
        raise DataError(
            f"{root} holds {GOOD} images beside others ({others}); to train, give {root / GOOD}; "
            f"to test, put these folders into one named test and give the folder around it"
        )


def _is_category(folder: Path) -> bool:
    try:
        return (folder / "train" / GOOD).is_dir() or own_layout(folder) is not None
    except OSError:  # a folder that may not be read is said where its images are looked for
        return False


def _contents(folder: Path) -> str:
    """Describe in a few words what lies in a folder, subfolders included."""
    files = [name for _, _, names in os.walk(folder) for name in names]
    if files:
        return f"{len(files)} other files such as {min(files)}"
    below = subfolders(folder)
    return f"only empty folders such as {below[0]}" if below else "an empty folder"
