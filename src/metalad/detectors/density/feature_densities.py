"""Density models of a pretrained network's features, fitted on those of good images."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from metalad.detectors.density.codebook import MAX_POINTS, Codebook, Selection, sampled_positions
from metalad.detectors.density.composition import Composition, exceeded_by
from metalad.detectors.density.context import ContextPrediction
from metalad.detectors.density.gaussian import PositionalGaussian
from metalad.detectors.density.good_features import Features, GoodFeatures
from metalad.detectors.density.subspace import Subspace
from metalad.nn.parts import concatenated

NAMES = ("per_stride", "per_channel", "deep", "position")
"""The densities of positions, in the order of their distances; context prediction has a distance of its own."""
MIN_SHARE = 0.1
"""Smallest share of the entries of both codebooks of fine features that either of them gets."""
DEEP_CODEBOOK_SIZE = 1024
"""Entries of the codebook of deep features at most. They are fitted by k-means: a coreset of deep features is worse."""
MAX_CORESET_POINTS = 120_000
"""Fine feature vectors that coresets are selected from at most: rare ones must be among them to become entries."""
SUBSPACE_VARIANCE = 0.99
"""Fraction of the variance of the fine features that their subspace contains."""
REFERENCE_FRACTION = 0.2
"""The largest residual of an image is divided by the one that this fraction of its positions exceeds."""
IMAGE_WEIGHTS = (0.8, 0.6, 0.8)
"""Weights in `CompositionScore`: of the residual of the whole map, of that of the cell where it is largest, and, at
most, of the subspace."""
HALF_WEIGHT_IMAGES = 200
"""Number of good images with which the distances of whole images have half the weight that they have with very many."""


class Distances(NamedTuple):
    """Distances of a batch.

    positions: of each position of the grid of stride 8, by each density in the order of `NAMES`.
    composition: of each whole image, two by its composition and one by the subspace; None without them.
    context: of each position, by context prediction; None without it.
    """

    positions: list[Float[Tensor, "batch down across"]]
    composition: Float[Tensor, "batch 3"] | None = None
    context: Float[Tensor, "batch down across"] | None = None

    @classmethod
    def concatenate(cls, batches: Sequence["Distances"]) -> "Distances":
        """Return several batches as one."""
        positions = [torch.cat(kind) for kind in zip(*(batch.positions for batch in batches), strict=True)]
        return cls(positions, *(concatenated([getattr(batch, name) for batch in batches]) for name in cls._fields[1:]))

    def select(self, images: Int[Tensor, " images"]) -> "Distances":
        """Return those of the chosen images."""
        further = (None if part is None else part[images] for part in self[1:])
        return Distances([kind[images] for kind in self.positions], *further)


class Densities(nn.Module):
    """The density models, each with a distance of its own.

    per_stride: codebook of fine features, each stride with equal weight. per_channel: the same, each channel with equal
    weight. Each gets a share of the entries. deep: codebook of stride 32. position: a Gaussian of stride 4 at each
    position. composition: a subspace of whole maps of stride 16, which gives two distances of an image. subspace: that
    of the fine features of all positions; how far the largest residual of an image exceeds its others is a third
    distance. context: prediction of the fine features, strides with equal weight, from those around them. The last
    three may be None.
    """

    stride_weights: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        grid: tuple[int, int],
        *,
        codebook_size: int,
        selection: Selection,
        share: float = 0.5,
        composition: bool = False,
        context: tuple[int, float] | None = None,
    ) -> None:
        """Construct the models, unfitted.

        Args:
            widths: channels of strides 4, 8, 16.
            grid: positions of stride 8, down and across.
            codebook_size: entries of both codebooks of fine features.
            selection: of these entries.
            share: of these entries that `per_stride` gets, within `MIN_SHARE`.
            composition: whether there are densities of whole images.
            context: components and filter of a `ContextPrediction`; None: without it.
        """
        super().__init__()
        stride_weights = torch.cat([torch.full((width,), 1 / math.sqrt(width)) for width in widths])
        self.register_buffer("stride_weights", stride_weights[:, None, None], persistent=False)
        self.position_channels, self.stride_16_channels = widths[0], widths[2]
        first = round(codebook_size * min(max(share, MIN_SHARE), 1 - MIN_SHARE))
        self.per_stride, self.per_channel = (
            Codebook(max(1, part), selection) for part in (first, codebook_size - first)
        )
        self.deep = Codebook(min(codebook_size, DEEP_CODEBOOK_SIZE))
        self.position = PositionalGaussian()
        self.composition = Composition(widths[2], grid) if composition else None
        self.subspace = Subspace() if composition else None
        self.context = None if context is None else ContextPrediction(sum(widths), grid, *context)

    def fit(self, good: GoodFeatures, images: Int[Tensor, " images"], seed: int) -> None:
        """Fit all models but the context prediction. images: indices of images and of their perturbed copies.

        The subspace is fitted without perturbed copies: in those directions in which compression and noise change
        features, many defects do. It is fitted on turned copies of these images instead, which defects resemble less.
        """
        features = good.features
        most = MAX_CORESET_POINTS if self.per_channel.selection == "coreset" else MAX_POINTS
        sample = sampled_positions(features.fine, seed, images, most)
        self.per_stride.fit(sample, seed, self.stride_weights.flatten())
        self.per_channel.fit(sample, seed)
        self.deep.fit(sampled_positions(features.deep, seed, images), seed)
        self.position.fit(features.fine[:, : self.position_channels][images])
        if self.composition is not None and self.subspace is not None:
            self.composition.fit(self._stride_16(batch.fine) for batch in features.batches(images))
            parts = [part for part in good.for_subspace(images) if len(part)]
            self.subspace.fit((sampled_positions(features.fine, seed, part) for part in parts), SUBSPACE_VARIANCE)

    def forward(self, features: Features) -> Distances:
        """Return the distances of the positions and of the whole images."""
        fine = features.fine
        deep = F.interpolate(self.deep(features.deep)[:, None], fine.shape[-2:], mode="bilinear")[:, 0]
        position = self.position(fine[:, : self.position_channels])
        positions = [self.per_stride(fine * self.stride_weights), self.per_channel(fine), deep, position]
        return Distances(positions, self._of_images(fine), None if self.context is None else self.context(fine))

    def _of_images(self, fine: Tensor) -> Float[Tensor, "batch 3"] | None:
        if self.composition is None or self.subspace is None:
            return None
        vectors = fine.permute(0, 2, 3, 1)
        residuals = self.subspace(vectors.flatten(0, 2)).reshape(vectors.shape[0], -1)
        return torch.cat([self.composition(self._stride_16(fine)), peak_ratio(residuals)], 1)

    def _stride_16(self, fine: Tensor) -> Tensor:
        return fine[:, -self.stride_16_channels :]


def peak_ratio(residuals: Float[Tensor, "batch positions"]) -> Float[Tensor, "batch 1"]:
    """Return the largest residual of each image, relative to the one that `REFERENCE_FRACTION` of them exceed.

    Compression, noise and contrast change all residuals of an image, most defects a few.
    """
    reference = exceeded_by(residuals, REFERENCE_FRACTION).clamp_min(torch.finfo(residuals.dtype).tiny)
    return (residuals.amax(1) / reference)[:, None]
