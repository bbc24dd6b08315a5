"""PaDiM (Defard et al. 2021, arXiv:2011.08785): a Gaussian distribution of features at each position.

At each position, the mean and the covariance of a frozen backbone's features are computed over all good images. The
anomaly score of a position is the Mahalanobis distance of its feature. Objects must be aligned.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from metalad.detectors.base import DetectorConfig, FittedDetector
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone
from metalad.nn.networks import Tap
from metalad.nn.pixels import to_batch
from metalad.nn.whitening import whitening
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import auto_size, setting

BATCH_SIZE = 16
RIDGE = 0.01
"""Added to every variance, as in the paper (3.2): fewer images than channels leave the covariance singular."""


@dataclass(frozen=True, kw_only=True)
class PadimConfig(DetectorConfig):
    """Settings of PaDiM; those of the paper for ResNet-18, except the backbone."""

    image_size: tuple[int, int] = auto_size(224, 32)
    backbone: str = setting("lite0", "pretrained network that computes the features; all but lite0-2 need weights=PATH")
    weights: str | None = setting(None, "weights file of the backbone; none: the installed weights")
    taps: tuple[Tap, ...] = setting(("s4", "s8", "s16"), "strides of the feature maps that are used")
    grid: Tap = setting("s4", "grid of positions, one of the taps; s8 needs a quarter of the memory of s4")
    channels: int = setting(100, "channels selected at random from those of all taps")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if self.grid not in self.taps:
            raise ConfigError(f"grid is {self.grid}; it must be one of the taps, {', '.join(self.taps)}")
        if self.channels < 1:
            raise ConfigError(f"channels is {self.channels}; it must be at least 1")


class Padim(FittedDetector):
    """PaDiM: a frozen backbone, and a mean and a whitening matrix at each position.

    kept: indices of the selected channels. mean: [positions, channels]. whitening: [positions, channels, channels], the
        matrix W with WᵀW = inverse covariance.
    """

    name = "padim"
    min_images = 2
    config: PadimConfig
    kept: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, config: PadimConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, config.taps)
        self.register_buffer("kept", None)
        self.register_buffer("mean", None)
        self.register_buffer("whitening", None)

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:
        """Fit mean and covariance at each position.

        Raises:
            ConfigError: no weights for the backbone. DataError: fewer than two images.
        """
        if len(pixels) < 2:
            raise DataError(f"padim needs at least 2 good images to fit a covariance, got {len(pixels)}")
        self.backbone.load(self.config.weights)
        self.backbone.to(self.device)
        with torch.no_grad():
            width = sum(maps.shape[1] for maps in self.backbone(to_batch(pixels[:1], self.device)))
            order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
            self.kept = order[: self.config.channels].sort().values.to(self.device)
            self.mean, covariance = self._moments(pixels)
            self.whitening = whitening(covariance, RIDGE)

    def features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch positions channels"]:
        """Return the selected channels at each position, in row-major order; coarser maps are upsampled (nearest)."""
        maps = self.backbone(images)
        grid = maps[self.config.taps.index(self.config.grid)].shape[-2:]
        resized = [tap if tap.shape[-2:] == grid else F.interpolate(tap, grid, mode="nearest") for tap in maps]
        return torch.cat(resized, 1)[:, self.kept].flatten(2).transpose(1, 2)

    def distances(self, features: Float[Tensor, "batch positions channels"]) -> Float[Tensor, "batch positions"]:
        """Return the Mahalanobis distance of the feature at each position (eq. 2)."""
        centred = (features - self.mean).transpose(0, 1)
        whitened = torch.bmm(centred, self.whitening.transpose(1, 2))
        lengths: Tensor = torch.linalg.vector_norm(whitened, dim=2)
        return lengths.T

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the distance at each pixel, by bilinear interpolation."""
        distances = self.distances(self.features(images)).reshape(-1, 1, *self._grid(images))
        return Residuals(F.interpolate(distances, images.shape[-2:], mode="bilinear"))

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the distance itself."""
        return residuals.values[:, 0]

    def _grid(self, images: Tensor) -> tuple[int, int]:
        stride = int(self.config.grid[1:])
        height, width = images.shape[-2:]
        return -(-height // stride), -(-width // stride)

    def _moments(self, pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return mean and covariance at each position, in one pass and in double precision.

        The first image's features are subtracted before summation: sums of squares of large values would lose digits.
        """
        origin = self.features(to_batch(pixels[:1], self.device))[0]
        total = torch.zeros_like(origin, dtype=torch.double)
        products = total.new_zeros(*origin.shape, origin.shape[1])
        for start in counted(range(0, len(pixels), BATCH_SIZE), "moments", "batch"):
            batch = to_batch(pixels[start : start + BATCH_SIZE], self.device)
            centred = (self.features(batch) - origin).transpose(0, 1).double()
            total += centred.sum(1)
            products.baddbmm_(centred.transpose(1, 2), centred)
        mean = total / len(pixels)
        products.baddbmm_(total[:, :, None], mean[:, None], alpha=-1).div_(len(pixels) - 1)
        return (origin + mean).float(), products
