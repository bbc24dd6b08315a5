"""The anomaly map as a small gray picture, which the page colors relative to any threshold."""

import io
import math
import zlib

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from metalad.results.regions import above

MAX_SIDE = 1024
"""Longest side of the picture, in pixels."""
ZERO = 104
"""Value at the threshold."""
STEPS = 24
"""Steps of the value for a factor of 2."""


def encode_map(anomaly_map: Float32[np.ndarray, "height width"], threshold: float) -> bytes:
    """Return a map as a gray PNG: 104 + 24 log2(map / threshold), rounded up, between 1 and 255; 0 where the map is 0.

    Exactly the pixels above the threshold are above 104. A map with a side above `MAX_SIDE` is reduced by a whole
    factor; a pixel then has the maximum of its block, so that small regions stay.
    """
    data = io.BytesIO()
    # As for overlays: four times as fast as zlib's default, for files a tenth larger.
    Image.fromarray(_steps(_reduced(anomaly_map), threshold)).save(data, "PNG", compress_type=zlib.Z_RLE)
    return data.getvalue()


def _reduced(anomaly_map: Float32[np.ndarray, "height width"]) -> Float32[np.ndarray, "rows columns"]:
    factor = math.ceil(max(anomaly_map.shape) / MAX_SIDE)
    if factor == 1:
        return anomaly_map
    starts = [np.arange(0, side, factor) for side in anomaly_map.shape]
    reduced: Float32[np.ndarray, "rows columns"] = np.maximum.reduceat(
        np.maximum.reduceat(anomaly_map, starts[0], axis=0), starts[1], axis=1
    )
    return reduced


def _steps(anomaly_map: Float32[np.ndarray, "rows columns"], threshold: float) -> UInt8[np.ndarray, "rows columns"]:
    with np.errstate(divide="ignore"):
        steps = np.ceil(np.float32(STEPS) * (np.log2(anomaly_map) - np.float32(math.log2(threshold))))
    # The logarithms are rounded: where they disagree with the comparison, the comparison is right.
    steps = np.where(above(anomaly_map, threshold), np.maximum(steps, 1), np.minimum(steps, 0))
    values: UInt8[np.ndarray, "rows columns"] = np.clip(steps + np.float32(ZERO), 1, 255).astype(np.uint8)
    values[anomaly_map == 0] = 0
    return values
