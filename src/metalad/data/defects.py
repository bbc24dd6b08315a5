"""Labelled defects, for a method that can learn from some."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from metalad.data.decoding import is_16_bit_file
from metalad.data.framing import Framing
from metalad.data.images import read_image
from metalad.data.layouts import PLAIN, read_category
from metalad.data.likeness import pixel_hash
from metalad.data.loading import read_truth
from metalad.data.sample import Sample
from metalad.data.walking import find_images
from metalad.runtime.errors import DataError


@dataclass(frozen=True, eq=False)
class LabelledDefects:
    """Images of defects at a model's size.

    masks: anomalous pixels. located: images whose masks are known; the mask of another is empty. hashes: of the pixels
    at the images' own size, see `pixel_hash`.
    """

    pixels: UInt8[np.ndarray, "images height width 3"]
    masks: Bool[np.ndarray, "images height width"]
    located: Bool[np.ndarray, " images"]
    hashes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)


def read_defects(folder: Path, framing: Framing) -> LabelledDefects:
    """Read the anomalous test images of a category, with masks where it has any, or all images of another folder.

    Raises:
        DataError: no images, or one has 16 bits, whose white level is that of the training images.
        ImageError: an image or a mask cannot be read.
    """
    pixels, masks, located, hashes = [], [], [], []
    for sample in _samples(folder):
        if is_16_bit_file(sample.path):
            raise DataError(f"{sample.path} has 16 bits; labelled defects must have 8: convert them")
        image = read_image(sample.path)
        mask = read_truth(sample, image.shape[:2])
        pixels.append(framing.place(image))
        masks.append(np.zeros(framing.size, dtype=bool) if mask is None else framing.place_mask(mask))
        located.append(mask is not None)
        hashes.append(pixel_hash(image))
    return LabelledDefects(np.stack(pixels), np.stack(masks), np.array(located), tuple(hashes))


def _samples(folder: Path) -> list[Sample]:
    try:
        category = read_category(folder)
        is_category, found = category.layout != PLAIN, [sample for sample in category.test if sample.abnormal]
    except DataError:
        is_category, found = False, []  # such as a folder with one subfolder for each kind of defect
    if not is_category:
        found = [Sample(path, abnormal=True, defect="defect") for path in find_images(folder)]
    if not found:
        raise DataError(f"no images of defects in {folder}; give a folder of them, or a category with test images")
    return found
