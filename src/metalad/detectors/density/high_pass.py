"""A codebook of high-pass filtered patches of an image at full resolution: fine structure without shading."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.density.codebook import Codebook
from metalad.detectors.density.pca import leading_eigenvectors

PATCH = 9
"""Side of a patch, and of the square whose mean is subtracted from a pixel, in pixels of the image."""
STRIDE = 8
"""Distance between neighboring positions, in pixels of the image, vertically and horizontally."""
SAMPLED_STRIDE = 4
"""The same for the positions that patches are sampled at for fitting."""
COMPONENTS = 48
"""Principal components that a patch is projected on."""
ENTRIES = 5000
"""Codebook entries at most; never more than half of the patches that they are selected from."""
AVERAGED = 0.1
"""Fraction of the entries that k-means gives: most patches are nearly flat, and a coreset may have no entry there."""
POINTS = 60_000
"""Patches that the components and the codebook entries are fitted on at most, rounded up to as many of each image."""


class HighPassPatches(nn.Module):
    """The distance of a high-pass filtered patch from the nearest codebook entry, after a projection.

    The mean of the square around each pixel is subtracted from the image. Its patches are projected on their principal
    components. The entries are a coreset, so that the patches of a rare pose are entries, and averages of frequent
    patches.

    projection: [components, 3, PATCH, PATCH]. mean: [components], the projection of the mean patch.
        explained_variance: the fraction of the variance of the projected patches that the codebook explains: little
        where texture is random. It is measured on patches of the same images that are no entries, and is too high with
        few images, whose sampled patches overlap.
    """

    projection: Tensor
    mean: Tensor
    explained_variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.codebook = Codebook(ENTRIES, "coreset", AVERAGED)
        for name in ("projection", "mean", "explained_variance"):
            self.register_buffer(name, None)

    def fit(self, batches: Sequence[Float[Tensor, "_ 3 height width"]], seed: int) -> None:
        """Fit the components and the entries to patches at random positions of the images."""
        generator = torch.Generator().manual_seed(seed)
        per_image = -(-POINTS // sum(len(batch) for batch in batches))
        points = torch.cat([_sampled_patches(image, per_image, generator) for batch in batches for image in batch])
        centered = points - points.mean(0)
        _, directions = leading_eigenvectors(centered.T @ centered, COMPONENTS)
        self.projection = directions.float().T.reshape(-1, 3, PATCH, PATCH).contiguous()
        self.mean = points.mean(0) @ directions.float()
        projected = centered @ directions.float()
        self.codebook.count = min(ENTRIES, len(points) // 2)
        self.codebook.fit(projected, seed)
        distances = self.codebook(projected.T[None, :, None])
        # The distance of a patch that is an entry is 0: it says nothing of other patches.
        selected = len(self.codebook.entries) - self.codebook.averages
        unexplained = distances.square().sum() / (len(points) - selected)
        variance = projected.square().sum(1).mean().clamp_min(torch.finfo(projected.dtype).tiny)
        self.explained_variance = (1 - unexplained / variance).clamp_min(0)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch down across"]:
        """Return the distance at each position of the image."""
        padded = F.pad(high_pass(images), (PATCH // 2,) * 4, mode="replicate")
        maps = F.conv2d(padded, self.projection, stride=STRIDE) - self.mean[:, None, None]
        distances: Tensor = self.codebook(maps)
        return distances


def high_pass(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Return images minus the mean of the square around each pixel; the border pixels are repeated outwards."""
    return images - F.avg_pool2d(F.pad(images, (PATCH // 2,) * 4, mode="replicate"), PATCH, stride=1)


def _sampled_patches(
    image: Float[Tensor, "3 height width"], count: int, generator: torch.Generator
) -> Float[Tensor, "count values"]:
    patches = F.unfold(
        F.pad(high_pass(image[None]), (PATCH // 2,) * 4, mode="replicate"), PATCH, stride=SAMPLED_STRIDE
    )[0]
    chosen = torch.randperm(patches.shape[1], generator=generator)[:count]
    return patches[:, chosen.to(image.device)].T
