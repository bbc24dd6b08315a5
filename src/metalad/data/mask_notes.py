"""Facts about ground-truth masks that a user should know, and the notes of a report about them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from metalad.data.images import Mask, resize_mask
from metalad.data.text import number_of


@dataclass(frozen=True)
class MaskFacts:
    """Facts about the mask of one anomalous image.

    is_cut: it has many gray levels, and was cut at half brightness. is_empty: no pixel is anomalous. is_lost: no pixel
    is anomalous after resizing to the model's resolution, but some are before. is_mostly_white: more than half of the
    pixels are anomalous.
    """

    is_cut: bool
    is_empty: bool
    is_lost: bool
    is_mostly_white: bool


def mask_facts(mask: Mask, size: tuple[int, int]) -> MaskFacts:
    """Return the facts about a mask; `size` is the model's resolution, height and width."""
    pixels = mask.pixels
    is_empty = not pixels.any()
    is_lost = not is_empty and not resize_mask(pixels, size).any()
    return MaskFacts(mask.is_cut, is_empty, is_lost, bool(np.mean(pixels) > 0.5))


def mask_notes(masks: Iterable[MaskFacts]) -> Iterator[str]:
    """Yield the notes of a report about all masks of its anomalous images."""
    counts: Counter[str] = Counter()
    total = 0
    for facts in masks:
        total += 1
        counts.update(name for name, value in vars(facts).items() if value)
    if counts["is_empty"]:
        number = number_of(counts["is_empty"], "anomalous image")
        yield f"{number} with an empty mask; pixel metrics leave them out."
    if counts["is_lost"]:
        number = number_of(counts["is_lost"], "anomalous image")
        yield (
            f"{number} with a defect so small that its mask is empty at the model's resolution; pixel metrics at that "
            "resolution leave them out."
        )
    if counts["is_cut"]:
        number = number_of(counts["is_cut"], "mask")
        yield f"{number} with many gray levels; pixels above half brightness are taken as anomalous."
    if counts["is_mostly_white"] > total / 2:
        white = f"{counts['is_mostly_white']} of {number_of(total, 'mask')}"
        yield f"More than half of the pixels are anomalous in {white}; if white means good there, invert the masks."
