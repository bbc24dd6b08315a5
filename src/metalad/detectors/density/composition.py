"""A density of whole images: how far an image's feature map is from the subspace that good feature maps span.

Densities of single positions do not detect that a part is missing, doubled or in the wrong place, because each of its
features is usual somewhere. A whole feature map of such an image is not a combination of whole maps of good images.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.density.log_distance import NormalizedLogDistance
from metalad.detectors.density.pca import leading_eigenvectors

CELLS = 8
"""Cells into which the feature map is divided, down and across, at most; the features of a cell are averaged."""
MAX_CHANNELS = 128
"""Channels at most: of more, every second (third, …) one is used."""
COMPONENTS = 128
"""Principal components at most."""
MIN_EIGENVALUE = 1e-10
"""Components with a smaller fraction of the sum of squares of all maps are rounding errors and are left out."""

OFFSET = 1.5
"""A normalized log-distance below -OFFSET does not contribute to the score."""


def averaging_matrix(size: int, cells: int) -> Float[Tensor, "cells size"]:
    """Return the matrix that averages a line of `size` values over `cells` intervals of equal length."""
    edges = torch.arange(cells + 1, dtype=torch.double) * size / cells
    position = torch.arange(size, dtype=torch.double)
    overlap = torch.minimum(edges[1:, None], position + 1) - torch.maximum(edges[:-1, None], position)
    return (overlap.clamp_min(0) * cells / size).float()


class Composition(nn.Module):
    """The residual of an image's feature map after projection on principal components of good feature maps.

    mean: [channels × cells]. directions: [components, channels × cells], orthonormal.
    """

    mean: Tensor
    directions: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        """Construct the density, unfitted. grid: positions of the feature maps, down and across."""
        super().__init__()
        self.step = math.ceil(channels / MAX_CHANNELS)
        self.channels = math.ceil(channels / self.step)
        for name, size in zip(("rows", "columns"), grid, strict=True):
            self.register_buffer(name, averaging_matrix(size, min(size, CELLS)), persistent=False)
        self.register_buffer("mean", None)
        self.register_buffer("directions", None)

    def fit(self, batches: Iterable[Float[Tensor, "_ channels down across"]]) -> None:
        """Fit the mean and the principal components, at most one fewer than images; holds one batch and all cells."""
        vectors = torch.cat([self._vectors(maps).double() for maps in batches])
        energy = torch.linalg.vector_norm(vectors).square()
        mean = vectors.mean(0)
        centered = vectors.sub_(mean)
        # The Gram matrix has one row per image; the covariance matrix would have one row per cell and channel.
        values, combinations = leading_eigenvectors(centered @ centered.T, min(COMPONENTS, len(vectors) - 1))
        kept = values > MIN_EIGENVALUE * energy
        self.mean = mean.float()
        self.directions = ((combinations[:, kept] / values[kept].sqrt()).T @ centered).float()

    def forward(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch 2"]:
        """Return the root mean square of the residual of the whole map, and that of the cell where it is largest."""
        centered = self._vectors(maps) - self.mean
        residual = centered
        if len(self.directions):  # OpenVINO has no product with an empty matrix
            residual = centered - centered @ self.directions.T @ self.directions
        cells = len(self.rows) * len(self.columns)
        energy = residual.reshape(-1, self.channels, cells).square().mean(1)
        return torch.stack([energy.mean(1), energy.amax(1)], 1).sqrt()

    def _vectors(self, maps: Tensor) -> Float[Tensor, "batch channels_cells"]:
        return (self.rows @ maps[:, :: self.step] @ self.columns.T).flatten(1)


def level(maps: Float[Tensor, "batch down across"]) -> Float[Tensor, " batch"]:
    """Return the median of each map: compression and noise raise the whole map, most defects a part of it."""
    return exceeded_by(maps.flatten(1), 0.5)


def exceeded_by(values: Float[Tensor, "batch positions"], fraction: float) -> Float[Tensor, " batch"]:
    """Return the value of each image that a fraction of its positions exceed."""
    # Not torch.quantile or torch.median, which the exported formats lack.
    return values.topk(int(fraction * values.shape[1]) + 1, 1).values[:, -1]


def joined_score(
    score: Float[Tensor, " batch"], contribution: Float[Tensor, " batch"] | None
) -> Float[Tensor, " batch"]:
    """Return the root of the sum of squares of a map's score and the contribution of the composition, if there is one.

    It is at least the map's score: an image that passes has no pixel above the threshold.
    """
    return score if contribution is None else (score.square() + contribution.square()).sqrt()


class CompositionScore(nn.Module):
    """The contribution of distances of whole images to the image score: those of a `Composition`, and others.

    Each normalized log-distance plus `OFFSET` is multiplied by a weight; the contribution is a norm of those that are
    positive. With n good images it is multiplied by n / (n + m), since the subspace of few images is uncertain: with m
    images it is half of what it is with very many.

    Compression, noise and contrast raise the residual of the whole map, and the median of the map of all densities,
    too. What they explain is subtracted: perturbed copies of good images give the slope of each normalized log-distance
    against that level. It is multiplied by the variance of the level between an image and its copies, relative to the
    sum of that and the variance between images: where good images differ in level by themselves, a high level is no
    sign of a perturbation. A level above the mean of good images counts, up to the root mean square of what copies add.

    shrinkage: n / (n + m). weights: of the distances. mean_level: of good images. max_rise: the level above it that
    counts at most. slopes: of the distances.
    """

    shrinkage: Tensor
    weights: Tensor
    mean_level: Tensor
    max_rise: Tensor
    slopes: Tensor

    def __init__(self, weights: Sequence[float], half_weight_images: int, order: Literal[1, 2] = 1) -> None:
        """Construct the score, unfitted.

        weights: of the distances. half_weight_images: m. order: of the norm; 1: the sum, 2: the root of the sum of
            squares.
        """
        super().__init__()
        self.half_weight_images, self.order = half_weight_images, order
        self.log_distance = NormalizedLogDistance(len(weights))
        self.register_buffer("weights", torch.tensor(weights))
        self.register_buffer("shrinkage", torch.tensor(0.0))
        self.register_buffer("mean_level", torch.tensor(0.0))
        self.register_buffer("max_rise", torch.tensor(0.0))
        self.register_buffer("slopes", torch.zeros(len(weights)))

    def fit(
        self, distances: Float[Tensor, "held_out distances"], levels: Float[Tensor, " held_out"], images: int
    ) -> None:
        """Fit scales and slopes on held-out good images.

        distances, levels: of the images, then of a copy of each, as often as there are copies. images: their number
            without copies.
        """
        self.log_distance.fit(distances.unbind(1))
        self.shrinkage.fill_(images / (images + self.half_weight_images))
        own = levels[:images]
        self.mean_level = own.mean()
        normalized = self._normalized(distances).reshape(-1, images, len(self.weights))
        rise = levels.reshape(-1, images)[1:] - own
        if not rise.any():  # no copies
            self.max_rise.zero_()
            self.slopes.zero_()
            return
        slopes = (rise[..., None] * (normalized[1:] - normalized[0])).sum((0, 1)) / rise.square().sum()
        between_copies, between_images = rise.square().mean(), own.var(correction=0)
        self.max_rise = between_copies.sqrt()
        self.slopes = slopes.clamp_min(0) * between_copies / (between_copies + between_images)

    def forward(
        self, distances: Float[Tensor, "batch distances"], levels: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return the contribution of each image, which is never negative. levels: see `level`."""
        rise = torch.minimum((levels - self.mean_level).clamp_min(0), self.max_rise)
        explained = self.slopes * rise[:, None]
        terms = self.weights * (self._normalized(distances) - explained + OFFSET).clamp_min(0)
        contribution: Tensor = self.shrinkage * torch.linalg.vector_norm(terms, self.order, dim=1)
        return contribution

    def _normalized(self, distances: Tensor) -> Float[Tensor, "batch distances"]:
        return torch.stack(self.log_distance.normalized(distances.unbind(1)), 1)
