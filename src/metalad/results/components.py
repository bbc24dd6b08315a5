"""Connected components of a mask, without scipy, which an inspection computer need not have."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped


@dataclass(frozen=True, eq=False)
class Components:
    """The connected components of a mask, numbered from 0 in the order of their first pixels in reading order.

    Pixels are connected by their sides, not by corners.

    labels: the component of each pixel, -1 outside the mask. boxes: first row, first column, and the row and the
    column after the last. areas: numbers of pixels.
    """

    labels: Int[np.ndarray, "height width"]
    boxes: Int[np.ndarray, "components 4"]
    areas: Int[np.ndarray, " components"]
    _run_starts: Int[np.ndarray, " runs"]
    _run_components: Int[np.ndarray, " runs"]
    _mask: Bool[np.ndarray, "height width"]

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "height width"]) -> "Components":
        """Find the components: runs of pixels in each row are joined with those that touch them in the row above."""
        width = mask.shape[1] + 1
        # One column more than the mask: the end of a row is not the start of the next one.
        padded = np.zeros((len(mask), width), np.bool_)
        padded[:, :-1] = mask
        steps = np.flatnonzero(np.diff(padded.ravel(), prepend=False))
        starts, ends = steps[::2], steps[1::2]
        rows, first = np.divmod(starts, width)
        last = ends - rows * width
        lowest = np.searchsorted(ends, starts - width, side="right")
        touching = np.maximum(np.searchsorted(starts, ends - width, side="left") - lowest, 0)
        below = np.repeat(np.arange(len(rows)), touching)
        above = np.arange(len(below)) + np.repeat(lowest - (np.cumsum(touching) - touching), touching)
        number, component = np.unique(_roots(len(rows), above, below), return_inverse=True)
        boxes = np.tile(np.array([*mask.shape, 0, 0]), (len(number), 1))
        boxes[:, 1] = mask.shape[1]
        np.minimum.at(boxes[:, 0], component, rows)
        np.minimum.at(boxes[:, 1], component, first)
        np.maximum.at(boxes[:, 2], component, rows + 1)
        np.maximum.at(boxes[:, 3], component, last)
        lengths = last - first
        areas = np.bincount(component, lengths, len(number)).astype(np.int64)
        labels = np.full(mask.shape, -1, np.int32)
        labels[mask] = np.repeat(component, lengths)
        return cls(labels, boxes, areas, np.cumsum(lengths) - lengths, component, mask)

    def maxima(self, values: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, " components"]:
        """Return the maximum of `values` in each component."""
        highest = np.full(len(self.areas), -np.inf, values.dtype)
        if len(highest):
            np.maximum.at(highest, self._run_components, np.maximum.reduceat(values[self._mask], self._run_starts))
        return highest


def _roots(
    count: int, first: Int[np.ndarray, " pairs"], second: Int[np.ndarray, " pairs"]
) -> Int[np.ndarray, " count"]:
    """Return for each of `count` nodes the smallest node that it is connected with by pairs."""
    parent = np.arange(count)
    while True:
        one, other = parent[first], parent[second]
        if (one == other).all():
            return parent
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(grandparent := parent[parent], parent):
            parent = grandparent
