"""Log."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

TAIL = 0.99
"""The quantile of good images' places that is 1 in tail units."""

SHARPNESS = 4.0
"""How soon a map of surprise goes to 0 below the usual: softplus's beta."""


class NormalizedLogDistance(nn.Module):
    """Several distances as one, in tail units of good images.

    The logarithm of each is counted from its mean on good images, in units of how far its 99 % quantile lies above
    that: 0 is usual, 1 is what one good place in a hundred reaches. Their mean is what is said. A distance that
    varies much on good images has a long unit, and so a small say.

    usual, reach: [distances].
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, distances: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(distances))
        self.register_buffer("scale", torch.ones(distances))

    def fit(self, distances: Sequence[Float[Tensor, "images down across"]]) -> None:
        """Learn the units from distances of good images that the densities did not learn from."""
        for number, values in enumerate(distances):
            logs = _log(values).flatten()
            self.mean[number] = logs.mean()
            # The k-th of the sorted values: torch.quantile refuses more than 2**24.
            tail = logs.sort().values[math.ceil(TAIL * len(logs)) - 1]
            self.scale[number] = (tail - logs.mean()).clamp_min(1e-3)

    def forward(
        self,
        distances: Sequence[Float[Tensor, "batch down across"]],
        weights: Float[Tensor, " distances"] | None = None,
    ) -> Float[Tensor, "batch down across"]:
        """Return the mean of the distances in tail units; below 0 where less than usual.

        say: each distance's weight; all alike by default.
        """
        units = [(_log(values) - self.mean[number]) / self.scale[number] for number, values in enumerate(distances)]
        if weights is None:
            return torch.stack(units).mean(0)
        return (torch.stack(units) * weights[:, None, None, None]).sum(0) / weights.sum()


def as_map(log_distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return tail units as an anomaly map, which is never negative: near 0 below the usual, unchanged far above."""
    return F.softplus(log_distance, beta=SHARPNESS)


def _log(values: Tensor) -> Tensor:
    return values.clamp_min(1e-6).log()
