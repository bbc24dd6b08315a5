"""Normalization and combination of distances on a logarithmic scale."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MIN_WEIGHT = 1e-3
"""Smallest weight of a distance, relative to that of the others, that `fit` takes: the scale is divided by it."""

TAIL = 0.99
"""The quantile of the distances on good images that is mapped to 1."""

FLOOR = 4.0
"""Logarithms more than this below the mean on good images count as that. An image that a density was fitted on can have
distances of 0, whose logarithm is that of rounding errors, and those differ between runtimes."""
SHARPNESS = 4.0
"""`beta` of the softplus function that makes a map of normalized log-distances positive."""

LOG1P_TERMS = (1, 3, 5, 7, 9, 11, 13)


class NormalizedLogDistance(nn.Module):
    """Combination of several distances into one normalized log-distance.

    From the logarithm of each distance its mean on good images is subtracted. The difference is divided by that of the
    99 % quantile on good images: 0 is the mean, and 1 % of the positions of good images exceed 1. The result is the
    (weighted) mean over the distances. A distance with a large variation on good images has a large scale and therefore
    a small influence. Distances below exp(-`FLOOR`) times the geometric mean count as equal.

    mean, scale: [distances].
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, distances: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(distances))
        self.register_buffer("scale", torch.ones(distances))

    def fit(
        self, distances: Sequence[Float[Tensor, "*shape"]], weights: Float[Tensor, " distances"] | None = None
    ) -> None:
        """Fit mean and scale on distances of good images on which the densities were not fitted.

        weights: of the distances in the mean. The scales are divided by them, relative to their mean, so that the plain
        mean of the results is the weighted mean of the normalized log-distances. Equal by default.
        """
        for index, values in enumerate(distances):
            logs = _log(values).flatten()
            self.mean[index] = logs.mean()
            self.scale[index] = tail(logs)
        if weights is not None:
            weights = weights.clamp_min(MIN_WEIGHT)
            self.scale *= weights.mean() / weights

    def normalized(self, distances: Sequence[Float[Tensor, "*shape"]]) -> list[Float[Tensor, "*shape"]]:
        """Return the normalized log-distance of each distance; negative where it is below average."""
        return [
            (_log(values) - self.mean[index]).clamp_min(-FLOOR) / self.scale[index]
            for index, values in enumerate(distances)
        ]

    def forward(
        self,
        distances: Sequence[Float[Tensor, "batch down across"]],
        weights: Float[Tensor, " distances"] | None = None,
    ) -> Float[Tensor, "batch down across"]:
        """Return the mean of the normalized log-distances; negative where the distances are below average.

        weights: of the distances; equal by default.
        """
        normalized = torch.stack(self.normalized(distances))
        if weights is None:
            return normalized.mean(0)
        return (normalized * weights[:, None, None, None]).sum(0) / weights.sum()


def tail(values: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the quantile `TAIL` less the mean; positive even if all values are equal."""
    flat = values.flatten()
    # Taken from the sorted values, because torch.quantile does not accept more than 2**24 values.
    return (flat.sort().values[math.ceil(TAIL * len(flat)) - 1] - flat.mean()).clamp_min(1e-3)


def as_map(log_distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert normalized log-distances to a positive map: near 0 for negative values, unchanged for large values."""
    if not torch.compiler.is_compiling():
        return F.softplus(log_distance, beta=SHARPNESS)
    # In exported graphs: OpenVINO computes log(1 + exp(x)), which loses the digits of small values.
    scaled = SHARPNESS * log_distance
    return (F.relu(scaled) + _log1p(torch.exp(-scaled.abs()))) / SHARPNESS


def _log1p(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return log(1 + x) for x from 0 to 1 to single precision, as the series of 2 artanh(x / (2 + x))."""
    ratio = values / (2 + values)
    square = ratio.square()
    series = torch.full_like(square, 1 / LOG1P_TERMS[-1])
    for term in reversed(LOG1P_TERMS[:-1]):
        series = series * square + 1 / term
    return 2 * ratio * series


def _log(values: Tensor) -> Tensor:
    return values.clamp_min(1e-6).log()
