"""Recognize how a folder of images is laid out, and list its samples."""

import os
from collections.abc import Iterable
from pathlib import Path

from metalad.data.head_ct import LABELS, read_labelled
from metalad.data.sample import GOOD, Category, Sample
from metalad.errors import DataError
from metalad.images import IMAGE_SUFFIXES, find_images, require_folder

_ENDINGS = " ".join(sorted(IMAGE_SUFFIXES))


def read_category(root: Path, *, seed: int = 0) -> Category:
    """List the images of one category, whatever of three layouts its folder has.

    - "mvtec": `train/good`, `test/DEFECT` and `ground_truth/DEFECT/STEM_mask.png` (or `STEM.png`), as in
      MVTec AD; either of train and test may be missing, and so may masks.
    - "head-ct": a `labels.csv` of image and label (0 good, 1 abnormal), the images in `images` or beside it;
      a fifth of the good images, chosen by `seed`, and all abnormal ones are for the test.
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
    if (root / "train" / GOOD).is_dir() or (root / "test").is_dir():
        train, test = _read_train(root), _read_test(root)
        if not train and not test:
            _some_images(root / "test")
        return Category(name, root, "mvtec", train, test)
    if (root / LABELS).is_file():
        train, test = read_labelled(root, seed)
        return Category(name, root, "head-ct", train, test)
    _refuse_mixed(root)
    return Category(name, root, "folder", _good(_some_images(root)), ())


def _read_train(root: Path) -> tuple[Sample, ...]:
    folder = root / "train" / GOOD
    if folder.is_dir():
        return _good(_some_images(folder))
    if (root / "train").is_dir():
        raise DataError(f"no folder {folder}, which should hold the good images; found {_contents(folder.parent)}")
    return ()


def _read_test(root: Path) -> tuple[Sample, ...]:
    folder = root / "test"
    if not folder.is_dir():
        return ()
    samples: list[Sample] = []
    for defect in _subfolders(folder):
        images = find_images(folder / defect)
        masks = {} if defect == GOOD else _find_masks(root / "ground_truth" / defect)
        for path in images:
            stem = path.relative_to(folder / defect).with_suffix("").as_posix()
            mask = masks.get(f"{stem}_mask", masks.get(stem))
            samples.append(Sample(path, defect != GOOD, defect, mask))
    if not samples and find_images(folder):
        raise DataError(f"the images in {folder} need subfolders named {GOOD} and after each kind of defect")
    return tuple(samples)


def _find_masks(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in find_images(folder)}


def _good(paths: Iterable[Path]) -> tuple[Sample, ...]:
    return tuple(Sample(path, False, GOOD) for path in paths)


def _some_images(folder: Path) -> list[Path]:
    images = find_images(folder)
    if not images:
        raise DataError(f"no images in {folder}: looked for {_ENDINGS}, found {_contents(folder)}")
    return images


def _refuse_mixed(root: Path) -> None:
    """Refuse a folder whose images are hardly all good: defects in training spoil the model unseen."""
    subfolders = _subfolders(root)
    categories = [name for name in subfolders if os.path.isdir(root / name / "train" / GOOD)]  # noqa: PTH112 (it is False, not an error, where forbidden)
    if categories:
        raise DataError(f"{root} holds several categories; give one of them: {', '.join(categories[:20])}")
    if GOOD in subfolders and len(subfolders) > 1:
        others = ", ".join(name for name in subfolders if name != GOOD)
        raise DataError(
            f"{root} holds {GOOD} images beside others ({others}); to train, give {root / GOOD}; "
            f"to test, put these folders into one named test and give the folder around it"
        )


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _contents(folder: Path) -> str:
    """Describe in a few words what lies in a folder, subfolders included."""
    files = [name for _, _, names in os.walk(folder) for name in names]
    if files:
        return f"{len(files)} other files such as {min(files)}"
    subfolders = _subfolders(folder)
    return f"only empty folders such as {subfolders[0]}" if subfolders else "an empty folder"
