"""Interpret the pixel values of ground-truth masks, and recognize mask files that lie beside images."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8, UInt16

from metalad.data.decoding import decode, header_size
from metalad.data.names import role, same_name
from metalad.runtime.errors import ImageError

MAX_LABELS = 16
"""A mask with more values than this is not a map of labels: its edges are blurred, or it was compressed with losses."""
_DARK, _WHITE = 32 / 255, 224 / 255
_SAME_PICTURE = 0.8
"""Correlation of gray values above which two files hold the same picture."""
_MASK_WORDS = r"masks?|gt|labels?|seg|segmentation|ground_?truth|annotation|mask_?image"
_MASK_STEM = re.compile(rf"(?P<after>.+)[_\-. ](?:{_MASK_WORDS})|(?:{_MASK_WORDS})[_\-. ](?P<before>.+)", re.IGNORECASE)

_TRUTH = re.compile(r"ground[ _-]?truth", re.IGNORECASE)


def has_gray_edges(values: UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."]) -> bool:
    """Return whether a mask has the values of blurred edges or of lossy compression, not of labels.

    Such a mask has values above half brightness, and either more than `MAX_LABELS` values, or both almost black and
    almost white ones. Masks of labels have few values: all small, as in VisA, or all large, as in MVTec LOCO AD.
    """
    limit = int(np.iinfo(values.dtype).max)
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=limit + 1))
    levels = present[present > 0] / limit
    if not len(levels) or levels.max() <= 0.5:
        return False
    compressed = bool(levels.min() < _DARK and levels.max() >= _WHITE)
    return compressed or len(levels) > MAX_LABELS


def anomalous_pixels(
    values: UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."], cut: bool
) -> Bool[np.ndarray, "..."]:
    """Return the pixels above half brightness if `cut`, else all that are not black."""
    return np.asarray(values > (np.iinfo(values.dtype).max // 2 if cut else 0))


def masks_beside(paths: Sequence[Path]) -> dict[Path, Path]:
    """Return the masks that lie beside images, by image.

    A file is a mask if it looks like one and if it is named after another file of its folder: `000_mask.png` beside
    `000.png`, or `000.png` beside a photograph `000.jpg` of the same size.
    """
    by_stem: dict[tuple[Path, str], list[Path]] = {}
    for path in paths:
        by_stem.setdefault((path.parent, same_name(path.stem)), []).append(path)
    found: dict[Path, Path] = {}
    for same in by_stem.values():
        if len(same) == 2 and (pair := _image_and_mask(*same)) is not None:
            found[pair[0]] = pair[1]
    for path in paths:
        name = _MASK_STEM.fullmatch(same_name(path.stem))
        images = by_stem.get((path.parent, name["after"] or name["before"])) if name else None
        if images is not None and looks_like_mask(path):
            found.setdefault(images[0], path)
    return found


def _image_and_mask(first: Path, second: Path) -> tuple[Path, Path] | None:
    try:
        if header_size(first) != header_size(second):
            return None
    except ImageError:  # an unreadable file is reported when it is read as an image
        return None
    are_masks = looks_like_mask(first), looks_like_mask(second)
    if are_masks[0] == are_masks[1] or _is_same_picture(first, second):
        return None
    return (first, second) if are_masks[1] else (second, first)


def _is_same_picture(first: Path, second: Path) -> bool:
    """Return whether two files of one size hold one picture in two formats, as a drawing in PNG and in JPEG."""
    try:
        values = [np.asarray(decode(path).convert("L"), np.float32) for path in (first, second)]
    except (ImageError, MemoryError, ValueError):
        return True
    first_values, second_values = (each.ravel() - each.mean() for each in values)
    size = float(np.linalg.norm(first_values) * np.linalg.norm(second_values))
    return float(first_values @ second_values) > _SAME_PICTURE * size


def is_in_mask_folder(root: Path, path: Path) -> bool:
    """Return whether a file below `root` is a mask in a folder with a name of masks; `root` may be this folder.

    All files in a folder that is named ground_truth are masks. Other names, such as "labels", may be those of products,
    so that these files are read.
    """
    names = (root.name, *path.parent.relative_to(root).parts)
    if any(_TRUTH.fullmatch(name) for name in names):
        return True
    return any(role(name) == "mask" for name in names) and looks_like_mask(path)


def looks_like_mask(path: Path) -> bool:
    """Return whether an image has few colors, or is black and white apart from its edges, as no photograph is."""
    try:
        image = decode(path)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            values: np.ndarray[Any, Any] = np.asarray(image)
            return len(np.unique(values)) <= MAX_LABELS
        rgb = image.convert("RGB")
    except (ImageError, MemoryError, ValueError):  # an unreadable file is reported when it is read as an image
        return False
    if rgb.getcolors(MAX_LABELS) is not None:
        return True
    values = np.asarray(rgb)
    low, high = values.min(axis=2), values.max(axis=2)
    return bool(((high < _DARK * 255) | (low >= _WHITE * 255)).mean() >= 0.95 and (high < _DARK * 255).mean() >= 0.01)
