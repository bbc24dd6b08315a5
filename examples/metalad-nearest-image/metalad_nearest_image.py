"""The nearest image: an image is compared with the good image that is most similar to it.

This suits parts in a few fixed poses.
"""

from dataclasses import dataclass

import numpy as np
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
    """Settings of the method."""

    side: int = setting(16, "side, in pixels, that images are shrunk to before the nearest one is searched")

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not 1 <= self.side <= min(self.image_size):
            raise ConfigError(f"side is {self.side}; it must lie between 1 and image_size")


class NearestImage(FittedDetector):
    """The method. good: the good images, uint8 [images, 3, height, width]; None until fitted."""

    name = "nearest_image"
    config: NearestImageConfig
    good: Tensor

    def __init__(self, config: NearestImageConfig) -> None:
        super().__init__(config)
        self.register_buffer("good", None)

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:
        """Store the good images.

        Raises:
            DataError: there are none.
        """
        del seed  # nothing is random
        if not len(pixels):
            raise DataError("nearest_image needs at least 1 good image, got 0")
        self.good = (to_batch(pixels, self.device) * 255).round().byte()

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the image minus the nearest good image, which is the reconstruction."""
        good = self.good.float() / 255
        differences = self._small(images)[:, None] - self._small(good)
        nearest = good[differences.square().sum(2).argmin(1)]
        return Residuals(images - nearest, nearest)

    def _small(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, self.config.side).flatten(1)
