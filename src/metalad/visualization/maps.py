"""Colour an anomaly map, lay it over its picture, outline a region."""

import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

Number = int | float | np.floating[Any]  # a range may come from Python or from a NumPy quantile

# At full strength the picture still shows through, so that one sees what was found and not only where.
OVERLAY_STRENGTH = 0.72
OUTLINE_COLOUR = (0, 229, 204)  # turquoise: absent from the heat map's colours, so never mistaken for heat


RATIO_OCTAVES = math.log2(3)
"""Colours span so many octaves below the threshold, and above it."""


@functools.cache
def _colours() -> UInt8[np.ndarray, "256 3"]:
    # Lazily: matplotlib costs a third of a second, which most commands need not pay.
    from matplotlib import colormaps

    table: UInt8[np.ndarray, "256 3"] = np.rint(255 * colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)
    table.flags.writeable = False
    return table


def _strength(
    anomaly_map: Float32[np.ndarray, "height width"], low: Number, high: Number
) -> Float32[np.ndarray, "height width"]:
    if not high > low:
        strength = anomaly_map > low
    else:
        strength = np.clip((anomaly_map - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(strength, dtype=np.float32)


def heat_map(
    anomaly_map: Float32[np.ndarray, "height width"], low: Number, high: Number
) -> UInt8[np.ndarray, "height width 3"]:
    """Colour a map: `low` and below black, then purple, red and orange, to pale yellow at `high` and above.

    The colours are matplotlib's inferno: perceptually uniform, and lightness grows with the value, so a grey
    print or a colour-blind eye reads the same map. Where `high` is not above `low`, the map splits at `low`.
    """
    index = np.rint(255 * _strength(anomaly_map, low, high)).astype(np.uint8)
    return np.asarray(_colours()[index])


def overlay(
    image: UInt8[np.ndarray, "height width 3"],
    anomaly_map: Float32[np.ndarray, "height width"],
    low: Number,
    high: Number,
    mask_outline: Bool[np.ndarray, "height width"] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Blend the coloured map into the picture, more where it is higher; at `low` and below nothing changes.

    The blend sets in softly: a map that is never far below its threshold would veil the whole picture otherwise.

    `mask_outline` is a region (ground truth, or where the map exceeds a threshold): its inner edge is drawn.
    """
    strength = _strength(anomaly_map, low, high)
    alpha = (OVERLAY_STRENGTH * strength**2 * (3 - 2 * strength))[..., np.newaxis]
    blended = image * (1 - alpha) + heat_map(anomaly_map, low, high) * alpha
    drawn: UInt8[np.ndarray, "height width 3"] = np.rint(blended).astype(np.uint8)
    if mask_outline is not None:
        drawn[contour(mask_outline, width=outline_width(image.shape[0], image.shape[1]))] = OUTLINE_COLOUR
    return drawn


def verdict_overlay(
    image: UInt8[np.ndarray, "height width 3"],
    anomaly_map: Float32[np.ndarray, "height width"],
    threshold: Number,
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay a map over its picture as the threshold sees it, and outline where the map exceeds it.

    Colours span a third of the threshold to three times it, in equal ratios: what nearly was an alarm shows, and an
    enormous one does not drown the rest. The threshold itself is the middle of the colours.
    """
    ratio = _octaves(anomaly_map, threshold)
    return overlay(image, ratio, -RATIO_OCTAVES, RATIO_OCTAVES, anomaly_map > threshold)


def verdict_heat(
    anomaly_map: Float32[np.ndarray, "height width"], threshold: Number
) -> UInt8[np.ndarray, "height width 3"]:
    """Colour a map as the threshold sees it, with the colours of `verdict_overlay` but on black."""
    return heat_map(_octaves(anomaly_map, threshold), -RATIO_OCTAVES, RATIO_OCTAVES)


def _octaves(
    anomaly_map: Float32[np.ndarray, "height width"], threshold: Number
) -> Float32[np.ndarray, "height width"]:
    ratio = np.log2(np.maximum(anomaly_map, np.finfo(np.float32).tiny) / np.float32(threshold))
    return np.asarray(ratio, dtype=np.float32)


def outline_width(height: int, width: int) -> int:
    """A line width in pixels that survives shrinking a picture of this size to a thumbnail of 256 px."""
    return max(1, round(max(height, width) / 170))


def contour(mask: Bool[np.ndarray, "height width"], width: int = 1) -> Bool[np.ndarray, "height width"]:
    """The inner edge of a region, `width` pixels thick; a region cut by the border is closed along it."""
    inside = mask
    for _ in range(width):
        padded = np.pad(inside, 1)
        neighbours = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        inside = inside & neighbours
    return np.asarray(mask & ~inside)
