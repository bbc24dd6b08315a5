"""The nearest image: what differs from the good image most like it is out of place. For a few fixed poses."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from metalad.detectors.base import DetectorConfig, FittedDetector
from metalad.detectors.residuals import Residuals
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.settings import setting


@dataclass(frozen=True, kw_only=True)
class NearestImageConfig(DetectorConfig):
    """Settings of the nearest image."""

    side: int = setting(16, "images are compared when shrunk to so many pixels a side")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if not 1 <= self.side <= min(self.image_size):
            raise ConfigError(f"side is {self.side}; it must lie between 1 and image_size")


class NearestImage(FittedDetector):
    """The nearest image. good: [images, 3, height, width], bytes."""

    name = "nearest_image"
    config: NearestImageConfig
    good: Tensor

    def __init__(self, config: NearestImageConfig) -> None:
        super().__init__(config)
        self.register_buffer("good", torch.zeros(0, 3, *config.image_size, dtype=torch.uint8))

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:
        """Remember the good images."""
        del seed  # nothing here is left to chance
        if not len(pixels):
            raise DataError("nearest_image needs at least 1 good image to learn from, got 0")
        self.good = (to_batch(pixels, self.device) * 255).round().byte()

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return image minus the good image nearest to it, which is what was expected."""
        good = self.good.float() / 255
        apart = self._small(images)[:, None] - self._small(good)
        expected = good[apart.square().sum(2).argmin(1)]
        return Residuals(images - expected, expected)

    def _small(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, self.config.side).flatten(1)
