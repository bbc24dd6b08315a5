"""Detect the layout of an image folder, and list its samples."""

import dataclasses
import os
from pathlib import Path

from metalad.data.head_ct import find_listing, read_labelled
from metalad.data.images import IMAGE_SUFFIXES, find_images, require_folder
from metalad.data.listing import good_samples, subfolders
from metalad.data.mvtec import (
    TEST,
    Parts,
    find_parts,
    good_folders,
    read_test,
    read_train,
    unused_folders,
    unused_test_images,
    unused_training_images,
)
from metalad.data.notes import (
    annotations_note,
    left_out_notes,
    masks_beside_note,
    masks_left_out_note,
    unmatched_masks_note,
)
from metalad.data.other_lists import check_other_lists
from metalad.data.own_layouts import own_layout
from metalad.data.plain import (
    categories_below,
    copies_note,
    refuse_several_kinds,
    refuse_some_marked,
    separate_masks,
    subfolder_counts,
)
from metalad.data.sample import GOOD, Category
from metalad.data.text import number_of
from metalad.runtime.errors import DataError

PLAIN = "folder"
"""The layout of a folder that matches no known layout; all of its images are assumed to be good."""
_ENDINGS = " ".join(sorted(IMAGE_SUFFIXES))


def read_category(root: Path, *, seed: int = 0, all_good: bool = False) -> Category:
    """List the images of one category. The layout of its folder is detected.

    - "mvtec": `train/good`, `test/DEFECT` and `ground_truth/DEFECT/STEM_mask.png` (or `STEM.png`), as in
      MVTec AD; train or test may be missing, and also the masks. Synonyms such as `Train/OK` and `Test/NG` are read if
      they are unambiguous.
    - "head-ct": a `labels.csv` with image and label, see `metalad.data.labels`; the images are in `images` or in the
      same folder. The test images are a fifth of the good images, selected with `seed`, and all anomalous images.
    - the layout of a published data set, see `metalad.data.own_layouts`; `seed` is used if no split was published.
    - "folder": any other folder of images, including subfolders; all images are good training images. A folder whose
      subfolders have names of good images, defects, masks or parts is refused.

    Args:
        root: the folder.
        seed: of the split, if no split was published.
        all_good: all images below `root` are good training images, whatever its folders are named.

    Raises:
        DataError: no usable images; the text states what was expected and what the folder contains.
    """
    require_folder(root)
    try:
        category = _read_plain(root, all_good=True) if all_good else _read(root, seed)
        left_out = left_out_notes(root)
        annotated = annotations_note(root, category.train), annotations_note(root, category.test)
    except OSError as error:
        raise DataError(f"cannot read the folder {root}: {error}; check its permissions") from error
    train, test = (_lines(*lines) for lines in zip(annotated, left_out, strict=True))
    return dataclasses.replace(
        category, train_notes=(*category.train_notes, *train), test_notes=(*category.test_notes, *test)
    )


def _read(root: Path, seed: int) -> Category:
    name = root.resolve().name
    own = own_layout(root)
    if own is not None:
        listing = own.read(root, seed)
        if not any(listing[:4]):
            raise DataError(f"{root} has the layout of {own.name}, but contains no images; copy the data set again")
        category = Category(name, root, own.name, *listing)
        if own.truth is None:
            return category
        found = find_parts(root) or Parts(None, None, None)
        return _with_notes(category, dataclasses.replace(found, truth=found.truth or root / own.truth))
    parts = find_parts(root)
    if parts is not None:
        return _read_mvtec(root, parts)
    labels = find_listing(root)
    if labels is not None:
        train, test, notes = read_labelled(root, labels, seed)
        notes += _lines(masks_left_out_note([root], test))
        return Category(name, root, "head-ct", train, test, train_notes=notes, test_notes=notes)
    return _read_plain(root, all_good=False)


def _read_mvtec(root: Path, parts: Parts) -> Category:
    if parts.train is not None and not good_folders(parts.train):
        raise DataError(
            f"no folder {parts.train / GOOD}, which must contain the good images; found {_contents(parts.train)}; "
            f"to train on all images there, if they are good, give {parts.train}"
        )
    train, test = read_train(parts), read_test(parts)
    if parts.train is not None and not train:
        _require_images(good_folders(parts.train)[0])
    if not train and not test:
        _require_images(parts.test or root / TEST)
    category = _with_notes(Category(root.resolve().name, root, "mvtec", train, test), parts)
    unused = _lines(unused_folders(root, parts))
    return dataclasses.replace(
        category, train_notes=category.train_notes + unused, test_notes=category.test_notes + unused
    )


def _with_notes(category: Category, parts: Parts) -> Category:
    train_folders = [] if parts.train is None else good_folders(parts.train)
    test_folders = [] if parts.test is None else [parts.test]
    train = _lines(unused_training_images(parts), masks_left_out_note(train_folders, category.train))
    test = _lines(
        unused_test_images(parts),
        masks_beside_note(category.test),
        masks_left_out_note(test_folders, category.test),
        unmatched_masks_note(parts.truth, category.test),
    )
    return dataclasses.replace(category, train_notes=train, test_notes=test)


def _read_plain(root: Path, *, all_good: bool) -> Category:
    paths = find_images(root)
    if not all_good:
        categories = categories_below(root, paths, _is_category)
        if categories:
            raise DataError(f"{root} contains several categories; give one of them: {', '.join(categories[:20])}")
        refuse_several_kinds(root, paths)
    images, masks = separate_masks(root, paths, all_good=all_good)
    other_list = None
    if not all_good:
        refuse_some_marked(root, images)
        other_list = check_other_lists(root, images)
    if not images:
        _require_images(root)
        raise DataError(f"all {number_of(masks, 'image')} in {root} are masks; give a folder of images of products")
    left_out = f"{number_of(masks, 'mask')} left out" if masks else None
    notes = _lines(subfolder_counts(root, images), copies_note(images), left_out, other_list)
    return Category(root.resolve().name, root, PLAIN, good_samples(images), (), train_notes=notes)


def _lines(*lines: str | None) -> tuple[str, ...]:
    return tuple(line for line in lines if line is not None)


def _require_images(folder: Path) -> list[Path]:
    images = find_images(folder)
    if not images:
        raise DataError(f"no images in {folder}: expected files with {_ENDINGS}, found {_contents(folder)}")
    return images


def _is_category(folder: Path) -> bool:
    try:
        parts = find_parts(folder)
        return (parts is not None and parts.train is not None) or own_layout(folder) is not None
    except OSError:  # an unreadable folder is reported when its images are listed
        return False


def _contents(folder: Path) -> str:
    """Describe the contents of a folder and its subfolders, for an error message."""
    files = [name for _, _, names in os.walk(folder) for name in names]
    if files:
        return f"{len(files)} other files such as {min(files)}"
    names = subfolders(folder)
    return f"only empty folders such as {names[0]}" if names else "an empty folder"
