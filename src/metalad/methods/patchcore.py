"""PatchCore (Roth et al. 2022, arXiv:2106.08265): distance of a patch feature from the nearest feature of good images.

The memory bank is a coreset of the patch features of all good images. A patch's anomaly score is the distance of its
feature from the nearest feature in the bank. Nothing is trained.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from metalad.detectors.base import DetectorConfig, FittedDetector
from metalad.detectors.density.coreset import coreset, random_projection
from metalad.detectors.density.nearest import nearest
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone, neighbourhoods
from metalad.nn.networks import Tap
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import auto_size, setting

BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig(DetectorConfig):
    """Settings of PatchCore; those of the paper, except the backbone and the size limit of the bank."""

    image_size: tuple[int, int] = auto_size(224, 32)
    backbone: str = setting("lite0", "pretrained network that computes the features; all but lite0-2 need weights=PATH")
    weights: str | None = setting(None, "weights file of the backbone; none: the installed weights")
    taps: tuple[Tap, ...] = setting(("s4", "s8", "s16"), "strides of the feature maps that are used")
    grid: Tap = setting("s8", "grid of patches, one of the taps")
    bank_fraction: float = setting(0.1, "fraction of all patches in the bank")
    bank_size: int = setting(10_000, "maximum number of vectors in the bank")
    candidates: int = setting(50_000, "maximum number of random patches that the bank is selected from")
    projection: int = setting(128, "dimensions of the random projection used to select the bank")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if not 0 < self.bank_fraction <= 1:
            raise ConfigError(f"bank_fraction is {self.bank_fraction}; it must be more than 0 and at most 1")
        if min(self.bank_size, self.projection, self.candidates) < 1:
            raise ConfigError("bank_size, candidates and projection must be at least 1")
        if self.grid not in self.taps:
            raise ConfigError(f"grid is {self.grid}; it must be one of the taps, {', '.join(self.taps)}")


class PatchCore(FittedDetector):
    """PatchCore: a frozen backbone and a memory bank of patch features of good images."""

    name = "patchcore"
    scored_smoothed = False  # the score is that of the most anomalous patch
    config: PatchCoreConfig
    bank: Tensor

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, config.taps)
        self.register_buffer("bank", None)

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:
        """Fit the bank.

        Raises:
            ConfigError: no weights for the backbone. DataError: no image.
        """
        if not len(pixels):
            raise DataError("patchcore needs at least 1 good image, got 0")
        self.backbone.load(self.config.weights)
        self.backbone.to(self.device)
        with torch.no_grad():
            patches, total = self._candidates(pixels, seed)
            count = min(math.ceil(self.config.bank_fraction * total), self.config.bank_size, len(patches))
            self.bank = patches[coreset(random_projection(patches, self.config.projection, seed), count, seed)]

    def patches(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch down across channels"]:
        """Return the feature of each patch: all taps, averaged over 3×3, resized to one grid and concatenated."""
        maps = self.backbone(images)
        height, width = maps[self.config.taps.index(self.config.grid)].shape[-2:]
        return neighbourhoods(maps, (height, width)).permute(0, 2, 3, 1)

    def distances(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch down across"]:
        """Return the Euclidean distance of each patch's feature from the nearest one in the bank."""
        patches = self.patches(images)
        flat = patches.flatten(0, 2)
        # From differences, not from expanded squares, which lose all digits near 0.
        lengths: Tensor = torch.linalg.vector_norm(flat - self.bank[nearest(flat, self.bank)], dim=1)
        return lengths.reshape(patches.shape[:3])

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the distance at each pixel: that of its patch."""
        return Residuals(F.interpolate(self.distances(images)[:, None], images.shape[-2:], mode="nearest"))

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the distance itself."""
        return residuals.values[:, 0]

    def _candidates(self, pixels: np.ndarray, seed: int) -> tuple[Tensor, int]:
        """Return the random patches that the bank is selected from, and the number of all patches."""
        stride = int(self.config.grid[1:])
        height, width = self.config.image_size
        patches_per_image = -(-height // stride) * -(-width // stride)
        total = len(pixels) * patches_per_image
        sample = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[: self.config.candidates]
        sample, selected = sample.sort().values.to(self.device), []
        for start in counted(range(0, len(pixels), BATCH_SIZE), "features", "batch"):
            patches = self.patches(to_batch(pixels[start : start + BATCH_SIZE], self.device)).flatten(0, 2)
            first = start * patches_per_image
            selected.append(patches[sample[(sample >= first) & (sample < first + len(patches))] - first])
        return torch.cat(selected), total
