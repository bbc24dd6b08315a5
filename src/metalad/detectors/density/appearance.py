"""Density models of image appearance, without a network.

A reconstruction method can reconstruct a large anomaly from its own surroundings and then misses it. These models score
the image content itself:

- a positional Gaussian of edges and colors, for objects with a fixed pose;
- a codebook of image patches with their coordinates, so that patches at nearby positions have a smaller distance. The
  less position explains the edges of good images, the greater is its weight;
- a codebook of high-pass filtered patches at full resolution, for objects that turn; its weight is small on textures;
- principal components of the whole image, which give an expected image;
- the composition of the whole image, by its edges and colors, which contributes to the image score.

All are fitted on good images, without gradient descent.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metalad.data.corruptions import perturbed
from metalad.data.folds import fold_of_each
from metalad.detectors.density.codebook import MAX_POINTS, Codebook, Selection, sampled_positions
from metalad.detectors.density.edge_composition import EdgeComposition
from metalad.detectors.density.gaussian import PositionalGaussian, variance_explained_by_position
from metalad.detectors.density.high_pass import HighPassPatches
from metalad.detectors.density.pca import PrincipalComponents
from metalad.nn.photometric import LUMINANCE
from metalad.nn.pixels import Pixels, batches, subsampled
from metalad.nn.standardization import Standardization

STRIDE = 8
"""Distance between neighboring positions, in image pixels, vertically and horizontally."""
LEVELS = (1, 2)
"""Reduction factors of the images from which edges are computed."""
BRIGHTNESS_DIRECTIONS, COLOR_DIRECTIONS = 8, 4
CHANNELS = len(LEVELS) * (BRIGHTNESS_DIRECTIONS + 2 * COLOR_DIRECTIONS) + 3
PATCH = 9
"""Side of a patch, in pixels of the image reduced by `STRIDE`."""
PROJECTION = 96
"""Channels after a random projection of the 243 values of a patch, which approximately preserves distances
(Johnson & Lindenstrauss 1984)."""
CODEBOOK_SIZES: Mapping[Selection, int] = {"coreset": 5000, "k-means": 1024}
CODEBOOK_POINTS: Mapping[Selection, int] = {"coreset": 120_000, "k-means": MAX_POINTS}
"""Patches that the entries are selected from at most: rare ones must be among them to become entries of a coreset."""
WEIGHT_POWER = 4
"""The weight of the codebook is 1 minus this power of the fraction of variance that position explains."""
HIGH_PASS_WEIGHT, HIGH_PASS_POWER, MAX_HIGH_PASS_WEIGHT = 20.0, 24, 1.5
"""The weight of high-pass patches is that of the codebook, times the first number, times this power of the fraction of
their variance that their entries explain; at most the third number."""
MAX_IMAGES, MAX_PIXELS, MIN_IMAGES = 512, 512 * 2 * 256**2, 32
"""Maximum number of images for fitting, and of all their pixels: they, their features and the perturbed copies are in
memory. Of larger images fewer are used, but no fewer than the last number."""
PERTURBED_EVERY = 2
"""One of this many images is also used as a perturbed copy (lighting, position, focus). The models then tolerate such
changes, and the copies are too few to broaden the positional Gaussian much."""
YUV = (LUMINANCE, (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
"""Weights of red, green and blue for luminance and two color differences (ITU-R BT.601)."""


class Appearance(NamedTuple):
    """What the densities return for a batch.

    distances: of each pixel of the reduced image, by each density in the order position, patch, high-pass patch; they
        have different scales. contribution: of the composition to the image score; None without it.
    """

    distances: Float[Tensor, "batch densities down across"]
    contribution: Float[Tensor, " batch"] | None


class AppearanceDensity(nn.Module):
    """Densities of the appearance of good images, and principal components of the whole image.

    position: positional Gaussian of edges and colors. patch: codebook of the patches of the reduced image, with their
        coordinates. scale: square root of the sum of the variances of the patch channels; a distance of half the image
        side counts as much as this patch distance. high_pass: codebook of high-pass filtered patches, or None.
        composition: of edges and colors, or None. components: of images reduced by the factor `reduction`.
    selection: of the codebook's entries. A coreset keeps rare patches, such as those of an object in a rare
        orientation, and the codebook has a weight of its own. `k-means` has fewer entries and the weight 1.
    patch_weight: 1 minus a power of the fraction of variance that position explains: the weight of the codebook if
        `selection` is coreset. See `HIGH_PASS_WEIGHT` for that of high-pass patches; the positional Gaussian has
        weight 1.
    """

    yuv: Tensor
    projection: Tensor
    scale: Tensor
    patch_weight: Tensor

    def __init__(
        self,
        reduction: int,
        selection: Selection = "coreset",
        *,
        high_pass: bool = True,
        composition_grid: tuple[int, int] | None = None,
    ) -> None:
        """Construct the models, unfitted. composition_grid: see `grid_of`; None: no composition."""
        super().__init__()
        self.selection = selection
        self.reduction = reduction
        self.standardization, self.position, self.patch = (
            Standardization(CHANNELS),
            PositionalGaussian(),
            Codebook(CODEBOOK_SIZES[selection], selection),
        )
        self.high_pass = HighPassPatches() if high_pass else None
        self.composition = None if composition_grid is None else EdgeComposition(CHANNELS, composition_grid)
        self.components = PrincipalComponents()
        projection = torch.randn(PROJECTION, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(0))
        self.register_buffer("projection", projection / math.sqrt(PROJECTION))
        self.register_buffer("scale", torch.zeros(()))
        self.has_patch_weight = selection == "coreset" or high_pass
        if self.has_patch_weight:
            self.register_buffer("patch_weight", None)
        self.register_buffer("yuv", torch.tensor(YUV)[:, :, None, None], persistent=False)

    def fit(self, pixels: Pixels, device: torch.device, photometric: nn.Module | None = None) -> None:
        """Fit all models on good images and on perturbed copies of some of them (see `PERTURBED_EVERY`).

        Of more than `MAX_IMAGES` images, or than `MAX_PIXELS` allows, an evenly spaced subset is used. photometric:
        photometric normalization that is applied to the images first.
        """
        limit = min(MAX_IMAGES, max(MIN_IMAGES, MAX_PIXELS // math.prod(pixels.shape[1:3])))
        pixels, rng = subsampled(pixels, limit), np.random.default_rng(0)

        def normalized(images: Pixels) -> Iterator[Tensor]:
            return (batch if photometric is None else photometric(batch) for batch in batches(images, device))

        def copies_of(images: Pixels) -> Pixels:
            return np.stack([perturbed(image, rng) for image in images])

        def edges_of(images: Iterable[Tensor]) -> Tensor:
            return torch.cat([self.standardization(self.edges(batch)) for batch in images])

        with torch.no_grad():
            images = [*normalized(pixels), *normalized(copies_of(pixels[::PERTURBED_EVERY]))]
            self.standardization.fit(self.edges(batch) for batch in images)
            edges = edges_of(images)
            self.position.fit(edges)
            if self.composition is not None:
                own, copies = edges[: len(pixels)], torch.empty_like(edges[: len(pixels)])
                with_copy = torch.arange(len(pixels), device=device) % PERTURBED_EVERY == 0
                copies[with_copy] = edges[len(pixels) :]
                if not with_copy.all():
                    copies[~with_copy] = edges_of(normalized(copies_of(pixels[~with_copy.numpy(force=True)])))
                self.composition.fit(own, copies, with_copy, _half_of(pixels).to(device))
            patches = torch.cat([self.patches(batch) for batch in images])
            self.scale.copy_(patches.var((0, 2, 3)).sum().sqrt())
            points = sampled_positions(self._with_coordinates(patches), seed=0, most=CODEBOOK_POINTS[self.selection])
            self.patch.fit(points, seed=0)
            self.components.fit(torch.cat([reduced(batch, self.reduction) for batch in images]))
            if self.high_pass is not None:
                self.high_pass.fit(images, seed=0)
            if self.has_patch_weight:
                self.patch_weight = 1 - variance_explained_by_position(edges[: len(pixels)]) ** WEIGHT_POWER

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Appearance:
        """Return the distances of the densities, and the contribution of the composition."""
        size = (images.shape[-2] // self.reduction, images.shape[-1] // self.reduction)
        edges = self.standardization(self.edges(images))
        position = self.position(edges)
        distances = [position, self.patch(self._with_coordinates(self.patches(images)))]
        if self.high_pass is not None:
            distances.append(self.high_pass(images))
        maps = [F.interpolate(distance[:, None], size, mode="bilinear") for distance in distances]
        contribution = None if self.composition is None else self.composition(edges, position)
        return Appearance(torch.cat(maps, 1), contribution)

    @property
    def names(self) -> tuple[str, ...]:
        """The densities of each pixel, in the order of their distances and weights."""
        return ("position", "patch") if self.high_pass is None else ("position", "patch", "high_pass")

    def weights(self) -> Float[Tensor, " densities"]:
        """Return the weights of the distances of each pixel."""
        one = torch.ones((), device=self.scale.device)
        weights = [one, self.patch_weight if self.selection == "coreset" else one]
        if self.high_pass is not None:
            repeated = self.high_pass.explained_variance**HIGH_PASS_POWER
            weights.append((HIGH_PASS_WEIGHT * self.patch_weight * repeated).clamp_max(MAX_HIGH_PASS_WEIGHT))
        return torch.stack(weights)

    def use_shrinkage_of(self, other: "AppearanceDensity") -> None:
        """Let the composition have the shrinkage of another model, which was fitted on more images.

        The out-of-fold scores of images are to be those of new images by the model of all of them.
        """
        if self.composition is not None and other.composition is not None and self.composition.score.shrinkage > 0:
            self.composition.score.shrinkage.copy_(other.composition.score.shrinkage)

    def edges(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels down across"]:
        """Return edge strengths by direction at two scales, and the mean color, averaged around each position."""
        grid = grid_of(*images.shape[-2:])
        planes = F.conv2d(images, self.yuv)
        parts = [planes]
        for level in LEVELS:
            smaller = reduced(planes, level)
            parts += [_edges(smaller[:, :1], BRIGHTNESS_DIRECTIONS), _edges(smaller[:, 1:], COLOR_DIRECTIONS)]
        features = torch.cat([F.adaptive_avg_pool2d(part, grid) for part in parts], 1)
        # Zero padding makes features at the border similar only to other features at the border.
        return F.avg_pool2d(features, 3, stride=1, padding=1)

    def patches(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch projection down across"]:
        """Return the projected patch around each position of the reduced image, with zero padding."""
        return F.conv2d(reduced(images, STRIDE), self.projection, padding=PATCH // 2)

    def _with_coordinates(self, patches: Float[Tensor, "batch channels down across"]) -> Tensor:
        """Append the coordinates of each patch, from -1 to 1, times `scale`."""
        batch, _, height, width = patches.shape
        down = torch.linspace(-1, 1, height, device=patches.device)[:, None].expand(height, width)
        across = torch.linspace(-1, 1, width, device=patches.device).expand(height, width)
        coordinates = self.scale * torch.stack([down, across])
        return torch.cat([patches, coordinates.expand(batch, -1, -1, -1)], 1)


def _half_of(pixels: Pixels) -> Bool[Tensor, " images"]:
    """Return whether each image is in the first half; identical images are in the same one.

    Pairs of images, if there are more than two: every second image is fitted on with its perturbed copy.
    """
    number = torch.from_numpy(fold_of_each(pixels, len(pixels)))
    return number // (PERTURBED_EVERY if number.max() > 1 else 1) % 2 == 0


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Return the number of positions of edges and patches in an image: down, across."""
    return -(-height // STRIDE), -(-width // STRIDE)


def reduced(
    images: Float[Tensor, "batch channels height width"], factor: int
) -> Float[Tensor, "batch channels down across"]:
    """Return images reduced by a factor: the means of square blocks of pixels."""
    return F.avg_pool2d(images, factor, ceil_mode=True) if factor > 1 else images


def _edges(planes: Tensor, directions: int) -> Tensor:
    """Return the positive part of the derivatives of each plane, in equally spaced directions of the full circle."""
    padded = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    angles = [2 * math.pi * index / directions for index in range(directions)]
    return torch.cat([F.relu(across * math.cos(angle) + down * math.sin(angle)) for angle in angles], 1)
