"""An oracle for overlays: drawn at once, with a logarithm for each pixel."""

import math

import numpy as np
from scipy import ndimage

from metalad.visualization.maps import OUTLINE_COLOUR, blend, color_layer


def exact_overlay(image: np.ndarray, anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """Return the map over the image: colors from a third of the threshold to three times it, and the outline."""
    octaves = np.log2(np.maximum(anomaly_map, np.finfo(np.float32).tiny) / np.float32(threshold))
    drawn = blend(image, color_layer(octaves.astype(np.float32), -math.log2(3), math.log2(3)))
    above = anomaly_map > threshold
    width = max(1, round(max(above.shape) / 170))
    drawn[above & ~ndimage.binary_erosion(above, iterations=width)] = OUTLINE_COLOUR
    return drawn
