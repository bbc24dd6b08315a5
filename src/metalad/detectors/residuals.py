"""Residuals: what a detector computes for the pixels of a batch, before calibration, smoothing and any score."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalad.nn.parts import concatenated


class Residuals(NamedTuple):
    """The residuals of a batch, and what some methods return with them.

    values: signed residuals in one or more channels; 0 where a pixel is as expected.
    reconstruction: RGB in [0, 1], where a method makes one; calibration by content depends on it, because a
        reconstruction does not show the defect.
    score: the method's own image score, where its paper has one; positive, higher = more anomalous.
    contribution: of the whole image to its score, joined with that of the map; never negative.
    distances: further distances of each pixel, such as those of an auxiliary density model, each on its own scale and
        never negative; the calibrated map joins them with the residual.
    parts: number of equal groups of the residual's channels, such as the residuals of two reconstructions; the channels
        of each group are whitened without the others, and have a distance of their own.
    weights: of each part, then of each further distance, in the calibrated map's mean; equal for all images of a fitted
        model. None: all weights are 1.
    localization: the map before smoothing that localizes anomalies, by both scorings, where another one gives the image
        score; of a method that is `self_calibrated`, in the config's image size.
    """

    values: Float[Tensor, "batch channels height width"]
    reconstruction: Float[Tensor, "batch 3 height width"] | None = None
    score: Float[Tensor, " batch"] | None = None
    contribution: Float[Tensor, " batch"] | None = None
    distances: Float[Tensor, "batch densities height width"] | None = None
    parts: int = 1
    weights: Float[Tensor, "batch parts_and_densities"] | None = None
    localization: Float[Tensor, "batch height width"] | None = None

    def select(self, index: Tensor) -> "Residuals":
        """Return the residuals of the images selected by an index or a mask."""
        return self._map(lambda part: part[index])

    @classmethod
    def concatenate(cls, batches: Sequence["Residuals"]) -> "Residuals":
        """Return several batches as one, on the CPU, with those of its parts that all batches have."""
        on_cpu = [batch._map(Tensor.cpu) for batch in batches]
        values = torch.cat([batch.values for batch in on_cpu])
        further = {name: concatenated([getattr(batch, name) for batch in on_cpu]) for name in OPTIONAL}
        return cls(values, **further, parts=batches[0].parts)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Residuals":
        further = {name: None if (part := getattr(self, name)) is None else change(part) for name in OPTIONAL}
        return Residuals(change(self.values), **further, parts=self.parts)


OPTIONAL = tuple(name for name in Residuals._fields if name not in ("values", "parts"))
"""Fields that are tensors of a batch, or None."""
