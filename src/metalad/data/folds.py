"""Folds of images, of which each is left out of what it is scored by; identical images are in the same fold."""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int, UInt8

FEWEST = 5
"""Smallest number of folds: what overfits its images is fitted on four fifths of them."""
MOST = 10
IMAGES_IN_ALL = 200
"""Fewer images get more folds, up to `MOST`, while all folds together are fitted on about this many images."""


def number_of_folds(images: int) -> int:
    """Return 5, up to 10 for few images, and one for each image for fewer than 10."""
    return min(images, max(FEWEST, min(MOST, IMAGES_IN_ALL // images)))


def fold_of_each(
    pixels: UInt8[np.ndarray, "images height width 3"], folds: int | None = None
) -> Int[np.ndarray, " images"]:
    """Return the fold of each image, by default of `number_of_folds`; identical images are in the same fold."""
    return divided(number_of_each(pixels), folds or number_of_folds(len(pixels)))


def divided(numbers: Int[np.ndarray, " images"], folds: int) -> Int[np.ndarray, " images"]:
    """Return the fold of each image, at most this many, given `number_of_each`.

    If all images are identical, each counts as a different image: there are no others to fit on.
    """
    if (numbers == numbers[:1]).all():
        numbers = np.arange(len(numbers))
    return numbers % min(folds, int(numbers.max()) + 1)


def number_of_each(pixels: Iterable[UInt8[np.ndarray, "height width 3"]]) -> Int[np.ndarray, " images"]:
    """Return a number for each image, from 0 in the order of first occurrence; identical images have the same."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(hashlib.sha256(image.tobytes()).digest(), len(first)) for image in pixels], int)
