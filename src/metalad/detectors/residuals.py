"""Residuals."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Residuals(NamedTuple):
    """What a detector holds against the pixels of a batch, before calibration, smoothing and any verdict.

    values: signed residual, one or more channels, 0 where a pixel is as expected.
    expected: the reconstruction in [0, 1], where a method makes one; content calibration looks at it, since it
        cannot see the defect.
    score: the method's own image score, where its paper has one: positive, higher = more abnormal.
    distances: what else speaks against a pixel, each in a unit of its own, never negative; the calibrated map joins
        them with the residual.
    """

    values: Float[Tensor, "batch channels height width"]
    expected: Float[Tensor, "batch 3 height width"] | None = None
    score: Float[Tensor, " batch"] | None = None
    distances: Float[Tensor, "batch partners height width"] | None = None

    def taken(self, chosen: Tensor) -> "Residuals":
        """Return what is held against the chosen images of the batch."""
        return self._each(lambda part: part[chosen])

    @classmethod
    def joined(cls, batches: Sequence["Residuals"]) -> "Residuals":
        """Return several batches as one, on the CPU."""

        def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
            present = [part.cpu() for part in parts if part is not None]
            return torch.cat(present) if present else None

        residual = torch.cat([batch.values.cpu() for batch in batches])
        others = (joined([getattr(batch, name) for batch in batches]) for name in ("expected", "score", "distances"))
        return cls(residual, *others)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Residuals":
        return Residuals(
            change(self.values),
            None if self.expected is None else change(self.expected),
            None if self.score is None else change(self.score),
            None if self.distances is None else change(self.distances),
        )
