"""Standardization of feature channels."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Standardization(nn.Module):
    """Subtracts the mean of each channel and divides by its standard deviation; both are fitted once."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def fit(self, batches: Iterable[Float[Tensor, "_ channels _ _"]]) -> None:
        """Compute mean and deviation of each channel over images and positions; constant channels get deviation 1."""
        count = 0
        total = torch.zeros_like(self.mean, dtype=torch.double)
        squares = torch.zeros_like(total)
        for maps in batches:
            values = maps.double()
            count += maps.shape[0] * maps[0, 0].numel()
            total += values.sum((0, 2, 3))[:, None, None]
            squares += values.square().sum((0, 2, 3))[:, None, None]
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0))

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the standardized maps in single precision."""
        return (maps.float() - self.mean) / self.deviation
