"""Overlays and map files of one image at its own size, drawn in little memory."""

import functools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8, UInt16, UInt32
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from metalad.data.derived import MARK
from metalad.data.images import write_png16
from metalad.runtime.files import replacing
from metalad.visualization.maps import (
    OUTLINE_COLOUR,
    RATIO_OCTAVES,
    blend,
    color_layer,
    contour,
    looked_up,
    outline_width,
)

MAP_STEPS = 16384
"""The value of a map file at the threshold; its highest, 65535, stands for four thresholds and more."""
JPEG_QUALITY = 90
JPEG_MAX_SIDE = 65_500
"""The longest side of a JPEG; a larger overlay is written as PNG."""
BAND = 64
"""Rows drawn at once: blending takes 20 bytes a pixel, and is faster where they fit the cache."""
MAX_RATIO = 1e6


def in_thresholds(
    anomaly_map: Float32[np.ndarray, "height width"], threshold: float
) -> Float32[np.ndarray, "height width"]:
    """Return a map in units of the threshold."""
    # Divided in double precision: a tiny threshold would make single precision overflow.
    relative = np.empty(anomaly_map.shape, np.float32)
    with np.errstate(over="ignore"):
        np.divide(anomaly_map, threshold, out=relative, dtype=np.float64, casting="same_kind")
    np.minimum(relative, MAX_RATIO, out=relative)
    return relative


def to_steps(relative: Float32[np.ndarray, "height width"]) -> UInt16[np.ndarray, "height width"]:
    """Convert a map in units of the threshold to the values of a map file."""
    steps = np.rint(relative * np.float32(MAP_STEPS))
    return np.clip(steps, 0, np.iinfo(np.uint16).max, out=steps).astype(np.uint16)


def draw_overlay(
    image: UInt8[np.ndarray, "height width 3"], relative: Float32[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Blend a map in units of the threshold into its image, and outline where it exceeds the threshold.

    The colors span one third of the threshold to three times the threshold on a logarithmic scale; the threshold is
    the middle of the scale. Values just below the threshold stay visible, and very high values do not hide the others.
    They are the colors of the values of a map file (see `to_steps`), whose logarithms are in a table.
    """
    drawn = image.copy()
    for top in range(0, len(image), BAND):
        rows = slice(top, top + BAND)
        steps = to_steps(relative[rows])
        shown = np.flatnonzero((steps > MAP_STEPS * 2**-RATIO_OCTAVES).any(axis=0))
        if len(shown):
            columns = slice(shown[0], shown[-1] + 1)
            drawn[rows, columns] = blend(drawn[rows, columns], _layer(steps[:, columns]))
    above = relative > 1
    if above.any():
        drawn[contour(above, outline_width(*above.shape))] = OUTLINE_COLOUR
    return drawn


@functools.cache
def _layers_of_steps() -> UInt32[np.ndarray, " steps"]:
    """Return the RGBA color of each value of a map file, as one number: it is looked up faster than four bytes."""
    steps = np.arange(np.iinfo(np.uint16).max + 1, dtype=np.float32)
    octaves = np.log2(np.maximum(steps, np.float32(0.5)) / np.float32(MAP_STEPS))
    colors = np.ascontiguousarray(color_layer(octaves[None], -RATIO_OCTAVES, RATIO_OCTAVES)[0])
    table: UInt32[np.ndarray, " steps"] = colors.view(np.uint32)[:, 0]
    table.flags.writeable = False
    return table


def _layer(steps: UInt16[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 4"]:
    return looked_up(_layers_of_steps(), steps).view(np.uint8).reshape(*steps.shape, 4)


def overlay_suffix(height: int, width: int) -> str:
    """Return the suffix of an overlay's file: JPEG where the format allows the size."""
    return ".jpg" if max(height, width) <= JPEG_MAX_SIDE else ".png"


def save_picture(path: Path, pixels: UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width"]) -> None:
    """Write a JPEG or PNG by the path's suffix, atomically, with a mark that it is no photograph.

    Raises:
        RunError: the file cannot be written.
    """
    if pixels.dtype == np.uint16:
        write_png16(path, pixels, MARK)
        return
    jpeg = path.suffix == ".jpg"
    # Run-length and Huffman coding alone: four times as fast as zlib's default, for files a tenth larger.
    options: dict[str, Any] = {"quality": JPEG_QUALITY, "comment": MARK} if jpeg else {"compress_type": zlib.Z_RLE}
    if not jpeg:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("Comment", MARK)
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="JPEG" if jpeg else "PNG", **options)
