"""List the images of products in a folder, one after the other: no masks."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from metalad.data.masks import is_in_mask_folder, masks_beside
from metalad.data.walking import LeftOut, walk
from metalad.runtime.progress import logger

MASK = "mask"


def iter_products(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """Yield the images in a folder and its subfolders, in the order of `iter_images`, without masks.

    Masks lie beside an image, such as `000_mask.png` beside `000.png`, or in a folder with a name such as ground_truth.

    Args:
        folder: the folder.
        left_out: counts the masks, and the files that are neither images nor documents.

    Raises:
        DataError: as `iter_images`.
    """

    def masks(paths: Sequence[Path]) -> set[Path]:
        found = _masks(folder, paths)
        for _ in found:
            left_out.add(MASK)
        return found

    return walk(folder, left_out, masks)


def logged_products(folder: Path) -> Iterator[Path]:
    """Yield the images as `iter_products` does, and log a line about the files that were left out, at the end.

    Raises:
        DataError: as `iter_images`.
    """
    left_out = LeftOut()
    return _logged(iter_products(folder, left_out), left_out)


def find_masks(folder: Path) -> list[Path]:
    """Return the masks that `iter_products` leaves out.

    Raises:
        DataError: as `iter_images`.
    """
    found: list[Path] = []

    def collect(paths: Sequence[Path]) -> set[Path]:
        masks = _masks(folder, paths)
        found.extend(path for path in paths if path in masks)
        return masks

    for _ in walk(folder, LeftOut(), collect):
        pass
    return found


def _masks(root: Path, paths: Sequence[Path]) -> set[Path]:
    return {path for path in paths if is_in_mask_folder(root, path)} | set(masks_beside(paths).values())


def _logged(images: Iterator[Path], left_out: LeftOut) -> Iterator[Path]:
    yield from images
    if line := left_out.text():
        logger.info("%s", line)
