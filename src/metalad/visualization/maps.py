"""Colored anomaly maps, overlays of a map on its image, and outlines of regions."""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt, UInt8
from PIL import Image

Number = int | float | np.floating[Any]  # the limits of a range: Python numbers or NumPy quantiles

# Opacity of the map at its maximum; below 1, so that the image stays visible under it.
OVERLAY_STRENGTH = 0.72
OUTLINE_COLOUR = (0, 229, 204)  # turquoise, which is not among the colors of the heat map

RATIO_OCTAVES = math.log2(3)
"""Octaves (factors of 2) that the colors span below the threshold, and also above it."""


@functools.cache
def _color_table() -> UInt8[np.ndarray, "256 3"]:
    # Matplotlib's inferno as a file: an inspection computer need not have matplotlib.
    table: UInt8[np.ndarray, "256 3"] = np.load(Path(__file__).with_name("inferno.npy"))
    table.flags.writeable = False
    return table


@functools.cache
def _opacity_table() -> UInt8[np.ndarray, " 256"]:
    strength = np.arange(256) / 255
    table: UInt8[np.ndarray, " 256"] = np.rint(255 * OVERLAY_STRENGTH * strength**2 * (3 - 2 * strength)).astype(
        np.uint8
    )
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


def _color_index(
    anomaly_map: Float32[np.ndarray, "height width"], low: Number, high: Number
) -> UInt8[np.ndarray, "height width"]:
    index: UInt8[np.ndarray, "height width"] = np.rint(255 * _strength(anomaly_map, low, high)).astype(np.uint8)
    return index


def looked_up(table: Shaped[np.ndarray, "values ..."], index: UInt[np.ndarray, "height width"]) -> np.ndarray:
    """Return the table's entry for each pixel; the table has one for each value of the index's type."""
    # No index is out of range; without its check, `take` needs a third of the time.
    return np.take(table, index, axis=0, mode="clip")


def heat_map(
    anomaly_map: Float32[np.ndarray, "height width"], low: Number, high: Number
) -> UInt8[np.ndarray, "height width 3"]:
    """Color a map: black at `low` and below, then purple, red and orange, to pale yellow at `high` and above.

    The colors are those of matplotlib's inferno: perceptually uniform, with lightness increasing with the value. The
    map is therefore also readable in grayscale and with color vision deficiency. If `high` is not above `low`, values
    above `low` get the last color and all others the first.
    """
    return looked_up(_color_table(), _color_index(anomaly_map, low, high))


def color_layer(
    anomaly_map: Float32[np.ndarray, "height width"], low: Number, high: Number
) -> UInt8[np.ndarray, "height width 4"]:
    """Return the colors of a map and their opacities, as RGBA; the opacity is 0 at `low` and below.

    It is a smoothstep function of the value (slope 0 at `low`). With a linear function, a map whose values are all near
    the threshold would cover the whole image.
    """
    index = _color_index(anomaly_map, low, high)
    return np.concatenate([looked_up(_color_table(), index), looked_up(_opacity_table(), index)[..., None]], axis=2)


def blend(
    image: UInt8[np.ndarray, "height width 3"], layer: UInt8[np.ndarray, "height width 4"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image under a layer of colors with opacities."""
    # Pillow blends in integers, in a fifth of the time of NumPy's floating-point arithmetic.
    above, blended = Image.fromarray(layer), Image.fromarray(image)
    blended.paste(above, (0, 0), above)
    return np.array(blended)


def verdict_heat(
    anomaly_map: Float32[np.ndarray, "height width"], threshold: Number
) -> UInt8[np.ndarray, "height width 3"]:
    """Color a map relative to the threshold, with the colors of `metalad.visualization.overlay.draw_overlay`."""
    octaves = np.log2(np.maximum(anomaly_map, np.finfo(np.float32).tiny) / np.float32(threshold))
    return heat_map(octaves, -RATIO_OCTAVES, RATIO_OCTAVES)


def color_stops(count: int = 9) -> list[str]:
    """Return colors of the heat map at equal steps, from the lowest value to the highest, as `#rrggbb` for a page."""
    table = _color_table()
    return ["#" + bytes(table[round(255 * index / (count - 1))].tolist()).hex() for index in range(count)]


def outline_width(height: int, width: int) -> int:
    """Return a line width, in pixels, that stays visible when an image of this size is shrunk to 256 px."""
    return max(1, round(max(height, width) / 170))


def contour(mask: Bool[np.ndarray, "height width"], width: int = 1) -> Bool[np.ndarray, "height width"]:
    """Return the inner edge of a region, `width` pixels thick. The image border counts as outside of the region."""
    inside = mask
    for _ in range(width):
        padded = np.pad(inside, 1)
        neighbours = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        inside = inside & neighbours
    return np.asarray(mask & ~inside)
