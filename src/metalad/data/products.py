"""List the images of products in a folder, one after the other: no masks."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from metalad.data.masks import is_in_mask_folder, masks_beside
from metalad.data.walking import LeftOut, walk

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
        found = {path for path in paths if is_in_mask_folder(folder, path)} | set(masks_beside(paths).values())
        for _ in found:
            left_out.add(MASK)
        return found

    return walk(folder, left_out, masks)
