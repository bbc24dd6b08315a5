"""SubspaceAD (Lendering et al. 2026, arXiv:2602.23013): distance of a feature from a subspace of good features.

A frozen backbone computes a feature for each patch, the mean of several layers. Principal component analysis of the
features of all good images gives a subspace with 99 % of their variance. A patch's anomaly score is the norm of its
residual after projection on the subspace. Nothing is trained; one to a few good images are enough.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from metalad.detectors.base import DetectorConfig, FittedDetector
from metalad.detectors.density.subspace import Subspace
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone, neighbourhoods
from metalad.nn.networks import Tap, channels_of
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import auto_size, setting

BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class SubspaceADConfig(DetectorConfig):
    """Settings of SubspaceAD; those of the paper, except backbone, image size and rotations."""

    image_size: tuple[int, int] = auto_size(256, 32)
    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "top-k", "image score: the mean of the map's highest 1 %, its maximum (max), or its mean"
    )
    backbone: str = setting("lite0", "pretrained network that computes the features; all but lite0-2 need weights=PATH")
    weights: str | None = setting(None, "weights file of the backbone; none: the installed weights")
    taps: tuple[Tap, ...] = setting(("s4", "s8", "s16"), "strides of the feature maps that are used")
    grid: Tap = setting("s8", "grid of patches, one of the taps")
    variance: float = setting(0.99, "fraction of the good features' variance that the subspace contains")
    rotations: int = setting(0, "rotated copies of each good image, by equal steps of a full turn; for few images")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if self.grid not in self.taps:
            raise ConfigError(f"grid is {self.grid}; it must be one of the taps, {', '.join(self.taps)}")
        if not 0 < self.variance < 1:
            raise ConfigError(f"variance is {self.variance}; it must be between 0 and 1")
        if self.rotations < 0:
            raise ConfigError(f"rotations is {self.rotations}; it must be at least 0")


class SubspaceAD(FittedDetector):
    """SubspaceAD: a frozen backbone and a principal subspace of features of good images.

    averaged: whether the feature is the mean of the taps (a transformer, whose taps all have the same channels), or
        their concatenation (a convolutional network).
    """

    name = "subspace_ad"
    config: SubspaceADConfig

    def __init__(self, config: SubspaceADConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, config.taps)
        channels = channels_of(self.backbone.network)
        self.averaged = len({channels[tap] for tap in config.taps}) == 1
        self.subspace = Subspace()

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:
        """Fit the subspace; `seed` is not used.

        Raises:
            ConfigError: no weights for the backbone. DataError: no image.
        """
        del seed
        if not len(pixels):
            raise DataError("subspace_ad needs at least 1 good image, got 0")
        self.backbone.load(self.config.weights)
        self.backbone.to(self.device)
        with torch.no_grad():
            self.subspace.fit(
                (self.patches(batch).flatten(0, 2) for batch in self._views(pixels)), self.config.variance
            )

    def patches(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch down across channels"]:
        """Return the feature of each patch: the mean of all taps on one grid, or their concatenation."""
        maps = self.backbone(images)
        height, width = maps[self.config.taps.index(self.config.grid)].shape[-2:]
        if self.averaged:
            mean = torch.stack([neighbourhoods([tap], (height, width)) for tap in maps]).mean(0)
            return mean.permute(0, 2, 3, 1)
        return neighbourhoods(maps, (height, width)).permute(0, 2, 3, 1)

    def distances(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch down across"]:
        """Return the norm of the residual of each patch's feature."""
        patches = self.patches(images)
        lengths: Tensor = self.subspace(patches.flatten(0, 2))
        return lengths.reshape(patches.shape[:3])

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the norm at each pixel, by bilinear interpolation."""
        return Residuals(F.interpolate(self.distances(images)[:, None], images.shape[-2:], mode="bilinear"))

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the norm itself."""
        return residuals.values[:, 0]

    def _views(self, pixels: np.ndarray) -> Iterator[Tensor]:
        """Yield the images in batches, then the rotated copies of all."""
        angles = [math.tau * turn / (self.config.rotations + 1) for turn in range(self.config.rotations + 1)]
        parts = [(angle, start) for angle in angles for start in range(0, len(pixels), BATCH_SIZE)]
        for angle, start in counted(parts, "features", "batch"):
            batch = to_batch(pixels[start : start + BATCH_SIZE], self.device)
            yield rotated(batch, angle) if angle else batch


def rotated(images: Float[Tensor, "batch 3 height width"], angle: float) -> Float[Tensor, "batch 3 height width"]:
    """Return images rotated counterclockwise about their centers; the corners are filled by reflection.

    angle: in radians.
    """
    height, width = images.shape[-2:]
    cosine, sine = math.cos(angle), math.sin(angle)
    # The coordinates of `affine_grid` range from -1 to 1 along both sides, whatever their lengths.
    matrix = images.new_tensor([[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]])
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
