"""Find images with identical pixels, and images of a single color."""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from metalad.data.text import number_of
from metalad.runtime.errors import DataError

NAMED = 3
"""Images that a line names at most."""
SINGLE_COLOR_NOTE = "of a single color, as a covered or disconnected camera gives, scored like any other"
STORED_DIGITS = 16
"""Digits of each image's hash in a model file: of 10,000 images, two differ in all but one of 10¹¹ cases."""


def pixel_hash(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """Return a SHA-256 hash of an image's size and pixels, in hexadecimal."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def short_hash(image_hash: str) -> str:
    """Return the part of an image's hash that a model file stores."""
    return image_hash[:STORED_DIGITS]


def is_single_color(image: UInt8[np.ndarray, "height width 3"]) -> bool:
    """Return whether all pixels of an image are equal, as in a black image."""
    # Of nearly every other image, a few pixels tell: a product before a plain background has whole rows of one color.
    return all(bool((part == image[0, 0]).all()) for part in (image[::16, ::16], image))


def likeness_notes(names: Sequence[str], hashes: Sequence[str], single_color: Sequence[bool]) -> tuple[str, ...]:
    """Describe images that are of a single color or identical to others.

    Args:
        names, hashes, single_color: of each image.

    Raises:
        DataError: all images are identical, or all are of a single color.
    """
    flat = [name for name, is_flat in zip(names, single_color, strict=True) if is_flat]
    if flat and len(flat) == len(names):
        raise DataError(f"all {number_of(len(names), 'training image')} are of a single color, such as {flat[0]}")
    groups: dict[str, list[str]] = {}
    for name, key in zip(names, hashes, strict=True):
        groups.setdefault(key, []).append(name)
    if len(names) > 1 and len(groups) == 1:
        raise DataError(
            f"all {len(names)} training images are identical, such as {names[0]} and {names[1]}; "
            "give different images of good parts"
        )
    copies = [group for group in groups.values() if len(group) > 1]
    notes = []
    if flat:
        notes.append(f"{number_of(len(flat), 'training image')} of a single color: {listed(flat)}")
    if copies:
        count = sum(len(group) - 1 for group in copies)
        pairs = [f"{group[1]} = {group[0]}" for group in copies]
        notes.append(f"{number_of(count, 'training image')} identical to another one: {listed(pairs)}")
    return tuple(notes)


def listed(names: Sequence[str]) -> str:
    """Join names by commas, at most `NAMED` of them."""
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
