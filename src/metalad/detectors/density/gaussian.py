"""Gaussian distributions of feature vectors, one for each position of a feature map."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalad.nn.smoothing import Smoothing
from metalad.nn.whitening import whitening

POOLING_SIGMA = 1.0
"""Standard deviation, in positions, of the Gaussian filter that smooths the moments over neighboring positions."""

PRIOR_IMAGES = 10.0
"""Shrinkage: a position's covariance is averaged with the mean covariance, which counts as this many images."""

RIDGE = 0.05
"""Fraction of the mean variance that is added to every variance."""

FULL_VARIATION, VARIATION_POWER = 0.125, 4
"""See `level_variation`."""


class PositionalGaussian(nn.Module):
    """The Mahalanobis distance of a feature vector from the Gaussian of its position (after Defard 2021).

    In contrast to PaDiM, the moments are smoothed over neighboring positions, and the covariances are shrunk towards
    their mean over all positions, so that few images are sufficient.
    mean: [channels, down, across]. whitening: [positions, channels, channels], W with WᵀW the inverse covariance.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)
        self.register_buffer("whitening", None)

    def fit(self, maps: Float[Tensor, "images channels down across"]) -> None:
        """Fit the mean and the covariance of each position."""
        images, channels, down, across = maps.shape
        pool = Smoothing(down, across, POOLING_SIGMA).to(maps.device)
        self.mean = pool(maps.mean(0))
        # Written in the order of positions at once: the maps of all images may be most of the memory.
        centered = maps.new_empty(down, across, channels, images)
        torch.sub(maps.permute(2, 3, 1, 0), self.mean.permute(1, 2, 0)[..., None], out=centered)
        products = torch.bmm(centered.flatten(0, 1), centered.flatten(0, 1).transpose(1, 2)).div_(images)
        del centered
        products = pool(products.permute(1, 2, 0).reshape(channels, channels, down, across)).flatten(2).permute(2, 0, 1)
        mean_product = products.mean(0)
        moments = products.mul_(images).add_(PRIOR_IMAGES * mean_product).div_(images + PRIOR_IMAGES)
        min_variance = RIDGE * mean_product.diagonal().mean() + torch.finfo(torch.float32).tiny
        self.whitening = whitening(moments, min_variance)

    def forward(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch down across"]:
        """Return the distance at each position, in standard deviations."""
        centered = (maps - self.mean).permute(2, 3, 1, 0).flatten(0, 1)
        distances: Tensor = torch.linalg.vector_norm(torch.bmm(self.whitening, centered), dim=1)
        return distances.T.reshape(-1, *maps.shape[-2:])


def variance_explained_by_position(maps: Float[Tensor, "images channels down across"]) -> Float[Tensor, ""]:
    """Return the fraction of the feature variance that position explains: 1 for identical images, 0 for textures."""
    within, total = maps.var(0, correction=0).mean(), maps.var((0, 2, 3), correction=0).mean()
    return 1 - within / total.clamp_min(torch.finfo(total.dtype).tiny)


def variance_explained_by_image(maps: Float[Tensor, "images down across"]) -> Float[Tensor, ""]:
    """Return the fraction of the variance of the values that the means of the images explain."""
    return maps.mean((1, 2)).var(correction=0) / maps.var(correction=0).clamp_min(torch.finfo(maps.dtype).tiny)


def level_variation(maps: Float[Tensor, "images down across"]) -> Float[Tensor, ""]:
    """Return how much the images differ in the level of their maps, from 0 to 1.

    1 where the means of the images explain `FULL_VARIATION` of the variance or more; below that it falls with a power
    of the fraction.
    """
    return (variance_explained_by_image(maps) / FULL_VARIATION).pow(VARIATION_POWER).clamp_max(1)
