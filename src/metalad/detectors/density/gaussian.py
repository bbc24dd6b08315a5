"""Gaussian."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalad.nn.smoothing import Smoothing
from metalad.nn.whitening import whitening

POOLING_SIGMA = 1.0
"""Neighbouring places share moments: a Gaussian of this many places."""

PRIOR_IMAGES = 10.0
"""A place's moments are drawn to the mean place's as if this many further images had shown those."""

RIDGE = 0.05
"""Added to every variance, as a part of the mean variance."""


class PositionalGaussian(nn.Module):
    """The Mahalanobis distance of a feature from the normal law of its place (after Defard 2021).

    Unlike PaDiM's, moments are shared with neighbouring places and drawn to the mean place's: few images suffice.
    mean: [channels, down, across]. whitening: [places, channels, channels], W with WᵀW the inverse covariance.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(0, 0, 0))
        self.register_buffer("whitening", torch.zeros(0, 0, 0))

    def fit(self, maps: Float[Tensor, "images channels down across"]) -> None:
        """Learn mean and covariance of each place."""
        images, channels, down, across = maps.shape
        pool = Smoothing(down, across, POOLING_SIGMA).to(maps.device)
        self.mean = pool(maps.mean(0))
        centred = (maps - self.mean).permute(2, 3, 1, 0).flatten(0, 1)
        products = torch.bmm(centred, centred.transpose(1, 2)) / images
        products = pool(products.permute(1, 2, 0).reshape(channels, channels, down, across)).flatten(2).permute(2, 0, 1)
        mean_place = products.mean(0)
        moments = (images * products + PRIOR_IMAGES * mean_place) / (images + PRIOR_IMAGES)
        floor = RIDGE * mean_place.diagonal().mean() + torch.finfo(torch.float32).tiny
        self.whitening = whitening(moments, floor)

    def forward(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch down across"]:
        """Return the distance at each place."""
        centred = (maps - self.mean).permute(2, 3, 1, 0).flatten(0, 1)
        lengths: Tensor = torch.linalg.vector_norm(torch.bmm(self.whitening, centred), dim=1)
        return lengths.T.reshape(len(maps), *maps.shape[-2:])


def variance_explained_by_position(maps: Float[Tensor, "images channels down across"]) -> Float[Tensor, ""]:
    """Return the part of the features' variance that places explain: 1 if images do not differ, 0 of textures."""
    within, total = maps.var(0, correction=0).mean(), maps.var((0, 2, 3), correction=0).mean()
    return 1 - within / total.clamp_min(torch.finfo(total.dtype).tiny)
