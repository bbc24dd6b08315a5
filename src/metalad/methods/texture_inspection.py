"""Texture inspection (Böttger & Ulrich 2016, DOI 10.1134/S1054661816010053): how likely is each small patch?

The grey patches of the good images, at each level of an image pyramid, are compressed and described by a mixture of
normal laws. A pixel is as abnormal as its patches are unlikely, in units of what good images show at that level.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from metalad.detectors.base import DetectorConfig, FittedDetector
from metalad.detectors.density.clustering import Mixture, fit_mixture, log_likelihood
from metalad.detectors.residuals import Residuals
from metalad.nn.photometric import grey
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import setting

WEBER = 0.03
"""Contrast, as a length over the patch, from which on the eye answers logarithmically (Varma & Zisserman 2009)."""


@dataclass(frozen=True, kw_only=True)
class TextureInspectionConfig(DetectorConfig):
    """Settings of texture inspection; size, levels, patches and images as in Bergmann et al. (CVPR 2019)."""

    image_size: tuple[int, int] = setting((400, 400), "height and width that images are resized to, in pixels")
    smoothing_sigma: float = setting(0.0, "Gaussian filter over the anomaly map, in pixels of that size; 0 = none")
    levels: int = setting(4, "levels of the image pyramid, each half as large as the one before")
    patch: int = setting(7, "side of a patch in pixels of its level; odd")
    normalization: Literal["none", "weber"] = setting("weber", "patches as they are, or their contrast by Weber's law")
    channels: int = setting(16, "values that a patch is compressed to, by random projection")
    components: int = setting(10, "normal laws in the mixture of a level")
    images: int = setting(10, "good images, chosen by chance, that the mixtures are made from")
    samples: int = setting(20_000, "patches of a level, chosen by chance, that its mixture is made from")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if min(self.levels, self.components, self.images) < 1:
            raise ConfigError("levels, components and images must be at least 1")
        if self.patch < 1 or self.patch % 2 == 0:
            raise ConfigError(f"patch is {self.patch}; it must be odd, such as 7")
        if min(self.level_sizes[-1]) <= self.patch // 2:
            raise ConfigError(f"levels is {self.levels}; the last is smaller than half a patch: take fewer")
        if not 1 <= self.channels <= self.patch**2:
            raise ConfigError(f"channels is {self.channels}; it must lie between 1 and {self.patch**2}, a patch's")
        if self.samples < self.components:
            raise ConfigError(f"samples is {self.samples}; it must be at least components, {self.components}")

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each level, the finest first."""
        height, width = self.image_size
        return [(height >> level, width >> level) for level in range(self.levels)]


class TextureInspection(FittedDetector):
    """Texture inspection: at each level a mixture, and the mean and the deviation of good patches' unlikelihood.

    projection: [patch · patch, channels], with orthonormal columns.
    """

    name = "texture_inspection"
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
        self.register_buffer("projection", torch.zeros(config.patch**2, channels))
        self.register_buffer("log_weight", torch.zeros(levels, count))
        self.register_buffer("mean", torch.zeros(levels, count, channels))
        self.register_buffer("whitening", torch.zeros(levels, count, channels, channels))
        self.register_buffer("level_mean", torch.zeros(levels))
        self.register_buffer("level_deviation", torch.ones(levels))

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:
        """Learn the mixtures, and from other images what is usual at each level.

        Raises:
            DataError: fewer than two images.
        """
        if len(pixels) < 2:
            raise DataError(f"texture_inspection needs at least 2 good images to learn from, got {len(pixels)}")
        order = np.random.default_rng(seed).permutation(len(pixels))
        others = min(self.config.images, max(1, len(pixels) // 5))
        chosen, held_out = order[:-others][: self.config.images], order[-others:]
        generator = torch.Generator().manual_seed(seed)
        side, channels = self.projection.shape
        self.projection = torch.linalg.qr(torch.randn(side, channels, generator=generator)).Q.to(self.device)
        with torch.no_grad():
            for level, points in enumerate(self._sampled(pixels[chosen], generator)):
                mixture = fit_mixture(points, self.config.components, seed)
                self.log_weight[level], self.mean[level], self.whitening[level] = mixture
            negative_log_likelihood = [
                self._negative_log_likelihood(to_batch(pixels[index : index + 1], self.device)) for index in held_out
            ]
            for level in range(self.config.levels):
                values = torch.cat([each[level].flatten() for each in negative_log_likelihood]).double()
                self.level_mean[level], self.level_deviation[level] = values.mean(), values.std().clamp_min(1e-6)

    def patches(self, images: Float[Tensor, "1 3 height width"]) -> Iterator[Float[Tensor, "places channels"]]:
        """Yield the compressed patch around each pixel, level by level; beyond the border lies its mirror image."""
        level = grey(images)
        for size in self.config.level_sizes:
            # The triangular filter of antialiasing is the pyramid's blur.
            level = level if level.shape[-2:] == size else F.interpolate(level, size, mode="bilinear", antialias=True)
            padded = F.pad(level, (self.config.patch // 2,) * 4, mode="reflect")
            places = F.unfold(padded, self.config.patch)[0].T
            if self.config.normalization == "weber":
                places = places - places.mean(1, keepdim=True)
                length = torch.linalg.vector_norm(places, dim=1, keepdim=True).clamp_min(1e-6)
                places = places * ((length / WEBER).log1p() / length)
            yield places @ self.projection

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the unlikelihood of each pixel's patches, the mean over levels in units of good images', above 0.

        Image by image: the patches of several together would take gigabytes.
        """
        maps = torch.stack([self._anomaly(images[index : index + 1]) for index in range(len(images))])
        # Below what is usual nothing is abnormal; softplus keeps the order there, and the values from 1 on.
        return Residuals(F.softplus(maps)[:, None])

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the unlikelihood itself."""
        return residuals.values[:, 0]

    def _anomaly(self, image: Tensor) -> Tensor:
        total = image.new_zeros(image.shape[-2:])
        for level, negative_log_likelihood in enumerate(self._negative_log_likelihood(image)):
            standard = (negative_log_likelihood - self.level_mean[level]) / self.level_deviation[level]
            total += F.interpolate(standard[None, None], total.shape, mode="bilinear")[0, 0]
        return total / self.config.levels

    def _negative_log_likelihood(self, image: Tensor) -> list[Tensor]:
        """Return the negative log-likelihood of each patch, in nats, level by level."""
        mixtures = (Mixture(*parts) for parts in zip(self.log_weight, self.mean, self.whitening, strict=True))
        return [
            -log_likelihood(points, mixture).reshape(size)
            for points, mixture, size in zip(self.patches(image), mixtures, self.config.level_sizes, strict=True)
        ]

    def _sampled(self, pixels: np.ndarray, generator: torch.Generator) -> list[Tensor]:
        levels: list[list[Tensor]] = [[] for _ in range(self.config.levels)]
        share = -(-self.config.samples // len(pixels))
        for index in counted(range(len(pixels)), "patches", "image"):
            for found, points in zip(
                levels, self.patches(to_batch(pixels[index : index + 1], self.device)), strict=True
            ):
                order = torch.randperm(len(points), generator=generator)[:share]
                found.append(points[order.to(points.device)])
        return [torch.cat(found) for found in levels]
