"""Texture inspection (Böttger & Ulrich 2016, DOI 10.1134/S1054661816010053): likelihood of gray patches.

At each level of an image pyramid, a Gaussian mixture is fitted to the gray patches of the good images, compressed by
random projection. A pixel's anomaly score is the negative log-likelihood of its patches, standardized per level by that
of good images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, FittedDetector
from metalad.detectors.density.clustering import Mixture, fit_mixture, log_likelihood
from metalad.detectors.residuals import Residuals
from metalad.nn.parts import in_parts
from metalad.nn.photometric import luminance
from metalad.nn.pixels import to_batch
from metalad.nn.resizing import Reduction
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import setting

WEBER = 0.03
"""Norm of a patch above which the response is logarithmic, as in human vision (Varma & Zisserman 2009)."""


@dataclass(frozen=True, kw_only=True)
class TextureInspectionConfig(DetectorConfig):
    """Settings of texture inspection; size, levels, patches and images as in Bergmann et al. (CVPR 2019)."""

    image_size: tuple[int, int] = setting((400, 400), "height and width that images are resized to, in pixels")
    smoothing_sigma: float = setting(0.0, "sigma of the Gaussian smoothing of the map, in resized pixels; 0 = off")
    levels: int = setting(4, "levels of the image pyramid; each has half the size of the one before")
    patch: int = setting(7, "side of a patch in pixels of its level; odd")
    normalization: Literal["none", "weber"] = setting("weber", "weber: logarithmic contrast (Weber); none: raw patches")
    channels: int = setting(16, "dimensions of the random projection of a patch")
    components: int = setting(10, "Gaussian components of the mixture of a level")
    mixture_images: int = setting(10, "number of random good images that the mixtures are fitted on")
    samples: int = setting(20_000, "number of random patches that a level's mixture is fitted on")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if min(self.levels, self.components, self.mixture_images) < 1:
            raise ConfigError("levels, components and mixture_images must be at least 1")
        if self.patch < 1 or self.patch % 2 == 0:
            raise ConfigError(f"patch is {self.patch}; it must be odd, such as 7")
        if min(self.level_sizes[-1]) <= self.patch // 2:
            raise ConfigError(f"levels is {self.levels}; the last is smaller than half a patch; use fewer levels")
        if not 1 <= self.channels <= self.patch**2:
            raise ConfigError(
                f"channels is {self.channels}; it must lie between 1 and {self.patch**2}, the pixels of a patch"
            )
        if self.samples < self.components:
            raise ConfigError(f"samples is {self.samples}; it must be at least components, {self.components}")

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each level, the finest first."""
        height, width = self.image_size
        return [(height >> level, width >> level) for level in range(self.levels)]


class TextureInspection(FittedDetector):
    """Texture inspection: one Gaussian mixture per level, and the standardization of its negative log-likelihood.

    projection: [patch · patch, channels], with orthonormal columns.
    """

    name = "texture_inspection"
    min_images = 2
    config: TextureInspectionConfig
    projection: Tensor
    log_weight: Tensor
    mean: Tensor
    whitening: Tensor
    level_mean: Tensor
    level_deviation: Tensor

    def __init__(self, config: TextureInspectionConfig) -> None:
        super().__init__(config)
        levels, count, channels = config.levels, config.components, config.channels
        # The antialiasing filter acts as the pyramid's low-pass filter.
        self.reductions = nn.ModuleList(Reduction(*sizes) for sizes in pairwise(config.level_sizes))
        self.register_buffer("projection", None)
        self.register_buffer("log_weight", torch.zeros(levels, count))
        self.register_buffer("mean", torch.zeros(levels, count, channels))
        self.register_buffer("whitening", torch.zeros(levels, count, channels, channels))
        self.register_buffer("level_mean", torch.zeros(levels))
        self.register_buffer("level_deviation", torch.ones(levels))

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:
        """Fit the mixtures, and on other images the standardization of each level.

        Raises:
            DataError: fewer than two images.
        """
        if len(pixels) < 2:
            raise DataError(f"texture_inspection needs at least 2 good images, got {len(pixels)}")
        order = np.random.default_rng(seed).permutation(len(pixels))
        held_out_count = min(self.config.mixture_images, max(1, len(pixels) // 5))
        chosen, held_out = order[:-held_out_count][: self.config.mixture_images], order[-held_out_count:]
        generator = torch.Generator().manual_seed(seed)
        side, channels = self.config.patch**2, self.config.channels
        self.projection = torch.linalg.qr(torch.randn(side, channels, generator=generator)).Q.to(self.device)
        with torch.no_grad():
            for level, points in enumerate(self._sampled_patches(pixels[chosen], generator)):
                mixture = fit_mixture(points, self.config.components, seed)
                self.log_weight[level], self.mean[level], self.whitening[level] = mixture
            negative_log_likelihood = [
                self._negative_log_likelihood(to_batch(pixels[index : index + 1], self.device)) for index in held_out
            ]
            for level in range(self.config.levels):
                values = torch.cat([each[level].flatten() for each in negative_log_likelihood]).double()
                self.level_mean[level], self.level_deviation[level] = values.mean(), values.std().clamp_min(1e-6)

    def patches(self, images: Float[Tensor, "batch 3 height width"]) -> Iterator[Float[Tensor, "patches channels"]]:
        """Yield the projected patch around each pixel, level by level; borders are padded by reflection."""
        level = luminance(images)
        for reduction in (nn.Identity(), *self.reductions):
            level = reduction(level)
            padded = F.pad(level, (self.config.patch // 2,) * 4, mode="reflect")
            patches = F.unfold(padded, self.config.patch).transpose(1, 2).flatten(0, 1)
            if self.config.normalization == "weber":
                patches = patches - patches.mean(1, keepdim=True)
                length = torch.linalg.vector_norm(patches, dim=1, keepdim=True).clamp_min(1e-6)
                patches = patches * ((length / WEBER).log1p() / length)
            yield patches @ self.projection

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return softplus of the standardized negative log-likelihood, averaged over levels.

        Images are processed one by one: the patches of several images would take gigabytes.
        """
        maps = torch.cat([self._standardized_maps(part) for part in in_parts(images, 1)])
        # Values below the mean are not anomalous; softplus keeps their order and hardly changes values above 1.
        return Residuals(F.softplus(maps))

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the residual itself."""
        return residuals.values[:, 0]

    def _standardized_maps(self, images: Tensor) -> Float[Tensor, "batch 1 height width"]:
        total = torch.zeros_like(images[:, :1])
        for level, negative_log_likelihood in enumerate(self._negative_log_likelihood(images)):
            standard = (negative_log_likelihood - self.level_mean[level]) / self.level_deviation[level]
            total = total + F.interpolate(standard, self.config.image_size, mode="bilinear")
        return total / self.config.levels

    def _negative_log_likelihood(self, images: Tensor) -> list[Float[Tensor, "batch 1 down across"]]:
        """Return the negative log-likelihood of each patch, in nats, level by level."""
        mixtures = (Mixture(*parts) for parts in zip(self.log_weight, self.mean, self.whitening, strict=True))
        return [
            -log_likelihood(points, mixture).reshape(-1, 1, *size)
            for points, mixture, size in zip(self.patches(images), mixtures, self.config.level_sizes, strict=True)
        ]

    def _sampled_patches(self, pixels: np.ndarray, generator: torch.Generator) -> list[Tensor]:
        levels: list[list[Tensor]] = [[] for _ in range(self.config.levels)]
        patches_per_image = -(-self.config.samples // len(pixels))
        for index in counted(range(len(pixels)), "patches", "image"):
            for sampled, points in zip(
                levels, self.patches(to_batch(pixels[index : index + 1], self.device)), strict=True
            ):
                order = torch.randperm(len(points), generator=generator)[:patches_per_image]
                sampled.append(points[order.to(points.device)])
        return [torch.cat(sampled) for sampled in levels]
