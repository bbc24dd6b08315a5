"""Regions: the connected parts of an image in which the anomaly map exceeds the threshold."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from contourpy import contour_generator
from jaxtyping import Bool, Float32

from metalad.results.components import Components

MAX_REGIONS = 100
"""Regions returned of one image at most: those with the highest peaks. A noisy map can have thousands."""
MIN_FRACTION = 1e-4
"""A region with a smaller fraction of the image's pixels is left out, unless it has the highest peak. The guided filter
transfers detail of the image to the map: where the map is near the threshold, noise gives regions of a few pixels."""


@dataclass(frozen=True)
class Region:
    """One connected part of the mask, in pixels of the image; pixels are connected by their sides, not by corners.

    box: left, top, width and height. area: number of pixels. peak_score: the map's maximum inside.
    polygon: the outer boundary as (x, y) vertices; x and y are measured from the outer edge of the image's first pixel,
        as in COCO. Corners are cut by half a pixel.
    """

    box: tuple[int, int, int, int]
    area: int
    peak_score: float
    polygon: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the region as JSON's own types."""
        return {
            "box": list(self.box),
            "area": self.area,
            "peak_score": self.peak_score,
            "polygon": [list(vertex) for vertex in self.polygon],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Region":
        """Rebuild a region from `to_dict`."""
        left, top, width, height = values["box"]
        polygon = tuple((x, y) for x, y in values["polygon"])
        return cls((left, top, width, height), values["area"], values["peak_score"], polygon)


def above(anomaly_map: Float32[np.ndarray, "height width"], threshold: float) -> Bool[np.ndarray, "height width"]:
    """Return where the map exceeds the threshold, in double precision, in which scores are compared with it."""
    return np.asarray(np.greater(anomaly_map, threshold, signature="dd->?"))


def find_regions(anomaly_map: Float32[np.ndarray, "height width"], threshold: float) -> tuple[Region, ...]:
    """Return the regions above the threshold, the highest peak first, at most `MAX_REGIONS`; see `MIN_FRACTION`."""
    mask = above(anomaly_map, threshold)
    if not mask.any():
        return ()
    box = _bounding_box(mask)
    components = Components.of(mask[box])
    peaks = components.maxima(anomaly_map[box])
    highest = np.argsort(-peaks, kind="stable")
    is_shown = components.areas[highest] >= MIN_FRACTION * mask.size
    is_shown[0] = True  # an image with a pixel above the threshold has a region
    shown = highest[is_shown][:MAX_REGIONS].tolist()
    return tuple(_region(components, index, float(peaks[index]), box) for index in shown)


def _bounding_box(mask: Bool[np.ndarray, "height width"]) -> tuple[slice, slice]:
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _region(components: Components, index: int, peak: float, box: tuple[slice, slice]) -> Region:
    """Return a component as a region; `box` is the part of the image that the components were found in."""
    top, left, bottom, right = map(int, components.boxes[index])
    inside = components.labels[top:bottom, left:right] == index
    height, width = inside.shape
    top, left = top + box[0].start, left + box[1].start
    polygon = tuple((left + x, top + y) for x, y in _outer_boundary(inside))
    return Region((left, top, width, height), int(inside.sum()), peak, polygon)


def _outer_boundary(inside: Bool[np.ndarray, "height width"]) -> Iterator[tuple[float, float]]:
    padded = np.pad(inside, 1).astype(np.float64)
    lines = contour_generator(z=padded).lines(0.5)
    # The outer boundary encloses the holes, so it has the widest extent.
    outer = max(cast(list[np.ndarray], lines), key=lambda line: float(np.ptp(line[:, 0]) + np.ptp(line[:, 1])))
    corners = outer[:-1]  # the last vertex repeats the first
    before, after = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    # Sample (1, 1) of the padded array is the center of the first pixel, which lies at (0.5, 0.5).
    yield from ((float(x) - 0.5, float(y) - 0.5) for x, y in corners[turns])
