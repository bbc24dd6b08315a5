"""Lines about what was found in a folder of images and is not used: other files, and masks that fit no image."""

from collections.abc import Sequence
from pathlib import Path

from metalad.data.annotations import find_annotations
from metalad.data.listing import images_in, subfolders
from metalad.data.names import is_good, role
from metalad.data.products import find_masks
from metalad.data.sample import Sample
from metalad.data.text import number_of
from metalad.data.walking import LeftOut, files_left_out, walk


def left_out_notes(root: Path) -> tuple[str | None, str | None]:
    """Return lines about the files that are not read, for the user of the training images and of the test images.

    Files in a folder of test images or masks are in the second line alone, those of training images in the first;
    those of validation images are in none, because these images are not used.
    """
    train, test = LeftOut(), LeftOut()
    for target in (train, test):
        files_left_out(root, target)
    for name in subfolders(root):
        counted = LeftOut()
        for _ in walk(root / name, counted):
            pass
        part = "test" if name == "test_public" else role(name)
        if part not in ("test", "mask", "validation"):
            train.merge(counted)
        if part not in ("train", "validation"):
            test.merge(counted)
    return train.text(), test.text()


def unmatched_masks_note(truth: Path | None, test: Sequence[Sample]) -> str | None:
    """Describe the masks that fit no anomalous image; None without any. Masks in folders of good images are ignored."""
    if truth is None or not truth.is_dir():
        return None
    used = {sample.mask for sample in test if sample.mask is not None}
    masks = [path for name in subfolders(truth) if not is_good(name) for path in images_in(truth / name)]
    masks += [path for path in images_in(truth) if path.parent == truth]
    unmatched = [path for path in masks if path not in used and not _lies_in(path, used)]
    if not unmatched:
        return None
    count = number_of(len(unmatched), "mask")
    return (
        f"{count} without an anomalous image, such as {unmatched[0]}; the mask of an image DEFECT/STEM.png must be "
        f"{truth.name}/DEFECT/STEM_mask.png or {truth.name}/DEFECT/STEM.png (any image suffix)"
    )


def annotations_note(root: Path, samples: Sequence[Sample]) -> str | None:
    """Describe the annotation files that mark images without a mask; None without any."""
    unmasked = [sample for sample in samples if sample.mask is None]
    found = find_annotations(root, [sample.path for sample in unmasked])
    if found is None or not found.marked:
        return None
    good = [sample.path for sample in unmasked if not sample.abnormal and sample.path in found.marked]
    remedy = "are marked by annotation files but taken as good" if good else "have annotation files, which are not read"
    count = number_of(len(good or found.marked), "good image" if good else "image")
    file = found.marked[good[0]] if good else next(iter(found.marked.values()))
    return f"{count} {remedy}, such as {file}" + ("" if good else "; only images are read as masks")


def masks_beside_note(test: Sequence[Sample]) -> str | None:
    """Describe the masks that lie beside their images; None without any."""
    beside = [sample.mask for sample in test if sample.mask is not None and sample.mask.parent == sample.path.parent]
    if not beside:
        return None
    return f"{number_of(len(beside), 'mask')} beside the images, such as {beside[0]}"


def masks_left_out_note(folders: Sequence[Path], samples: Sequence[Sample]) -> str | None:
    """Describe the masks among the images in folders that are not the ground truth of a sample; None without any."""
    used = {sample.mask for sample in samples}
    masks = [path for folder in folders for path in find_masks(folder) if path not in used]
    return f"{number_of(len(masks), 'mask')} left out, such as {masks[0]}" if masks else None


def _lies_in(path: Path, folders: set[Path]) -> bool:
    return path.parent in folders
