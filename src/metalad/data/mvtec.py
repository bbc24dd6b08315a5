"""Read categories in the layout of MVTec AD, also with synonyms of its folder names, such as Train/OK and Test/NG."""

from dataclasses import dataclass
from pathlib import Path

from metalad.data.images import find_images
from metalad.data.listing import (
    good_samples,
    is_folder_of_masks,
    mask_files,
    products_in,
    require_one_kind,
    samples_by_defect,
    subfolder_named,
    subfolders,
)
from metalad.data.names import Role, is_good, role
from metalad.data.sample import GOOD, Sample
from metalad.data.text import number_of
from metalad.runtime.errors import DataError

TRAIN, TEST, TRUTH = "train", "test", "ground_truth"


@dataclass(frozen=True)
class Parts:
    """The folders of a category; None if there is none. truth: contains the masks, in a folder for each defect type."""

    train: Path | None
    test: Path | None
    truth: Path | None


def find_parts(root: Path) -> Parts | None:
    """Return the parts of a category in the layout of MVTec AD, or None if a folder has another layout.

    The published names take precedence over synonyms. A synonym counts only if no other folder has the same role.

    Raises:
        OSError: the folder cannot be read.
    """
    names = subfolders(root)
    train, test = _only(root, names, TRAIN, "train"), _only(root, names, TEST, "test")
    good, has_test = train is not None and bool(good_folders(train)), test is not None
    if test is not None and test.name != TEST and not good:
        has_test = any(role(name) in ("good", "bad") for name in subfolders(test))
    if not good and not has_test:
        return None
    truth = _only(root, names, TRUTH, "mask")
    if truth is None and test is not None:
        inside = [test / name for name in subfolders(test) if is_folder_of_masks(test / name)]
        truth = inside[0] if len(inside) == 1 else None
    return Parts(train, test if has_test else None, truth)


def _only(root: Path, names: list[str], name: str, wanted: Role) -> Path | None:
    if name in names:
        return root / name
    found = [other for other in names if role(other) == wanted]
    return root / found[0] if len(found) == 1 else None


def good_folders(train: Path) -> list[Path]:
    """Return the subfolders of good images in the folder of training images."""
    return [train / name for name in subfolders(train) if is_good(name)]


def read_train(parts: Parts) -> tuple[Sample, ...]:
    """Return the training images, sorted by path.

    Raises:
        DataError: a subfolder of the good images has the name of anomalous ones.
    """
    images: list[Path] = []
    for folder in () if parts.train is None else good_folders(parts.train):
        products = products_in(folder)
        require_one_kind(folder, products, "bad")
        images += products
    return good_samples(images)


def read_test(parts: Parts) -> tuple[Sample, ...]:
    """Return the test images.

    Raises:
        DataError: all images are outside of subfolders, so that their labels are unknown, or the names of nested
            subfolders contradict each other.
    """
    if parts.test is None:
        return ()
    truth = parts.truth
    samples = samples_by_defect(
        parts.test, lambda defect: {} if truth is None else mask_files(subfolder_named(truth, defect))
    )
    if not samples and find_images(parts.test):
        raise DataError(f"the images in {parts.test} must be in subfolders: {GOOD}, and one for each defect type")
    return samples


def unused_training_images(parts: Parts) -> str | None:
    """Describe the images in the folder of training images that are in no folder of good ones; None without any."""
    if parts.train is None:
        return None
    good = good_folders(parts.train)
    others = [path for path in products_in(parts.train) if not any(path.is_relative_to(folder) for folder in good)]
    if not others:
        return None
    where = ", ".join(str(folder) for folder in good)
    return f"{number_of(len(others), 'image')} in {parts.train} but not in {where}, not used, such as {others[0]}"


def unused_folders(root: Path, parts: Parts) -> str | None:
    """Describe the images in other subfolders of the category, apart from validation images; None without any."""
    known = {parts.train, parts.test, parts.truth}
    others = [root / name for name in subfolders(root) if root / name not in known and role(name) != "validation"]
    counts = {folder: len(products_in(folder)) for folder in others}
    named = ", ".join(str(folder) for folder, count in counts.items() if count)
    return f"{number_of(sum(counts.values()), 'image')} not used, in {named}" if named else None


def unused_test_images(parts: Parts) -> str | None:
    """Describe the test images outside of subfolders, whose label is unknown; None without any."""
    if parts.test is None:
        return None
    loose = [path for path in products_in(parts.test) if path.parent == parts.test]
    if not loose:
        return None
    return f"{number_of(len(loose), 'image')} in {parts.test} but in no subfolder, not used, such as {loose[0].name}"
