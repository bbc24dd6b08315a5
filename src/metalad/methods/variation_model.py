"""The variation model (Steger, Ulrich & Wiedemann 2008, "Machine Vision Algorithms and Applications", 3.4).

Each pixel of an aligned object has a normal grey value and a normal variation, taken over the good images. A pixel
is as abnormal as it differs from the normal value, in units of the variation. Nothing is trained.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from metalad.detectors.base import DetectorConfig, FittedDetector
from metalad.detectors.residuals import Residuals
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import setting

MAD_TO_DEVIATION = 1.4826
"""Of a normal law, the standard deviation in median absolute deviations."""
ROWS = 16
"""Image rows whose medians are taken at once; sorting all would hold every image a second and a third time."""


@dataclass(frozen=True, kw_only=True)
class VariationModelConfig(DetectorConfig):
    """Settings of the variation model."""

    image_size: tuple[int, int] = setting((256, 256), "height and width that images are resized to, in pixels")
    smoothing_sigma: float = setting(1.0, "Gaussian filter over the anomaly map, in pixels of that size; 0 = none")
    statistics: Literal["standard", "robust"] = setting(
        "standard", "standard: mean and deviation; robust: median and median absolute deviation"
    )
    min_variation: float = setting(2 / 255, "least variation of a pixel, of grey levels in [0, 1]")

    def __post_init__(self) -> None:
        """Check what cannot be."""
        super().__post_init__()
        if not 0 < self.min_variation < 1:
            raise ConfigError(f"floor is {self.min_variation}; it must lie between 0 and 1")


class VariationModel(FittedDetector):
    """The variation model: the normal image and its variation, each colour apart.

    normal, variation: [3, height, width], grey levels in [0, 1].
    """

    name = "variation_model"
    config: VariationModelConfig
    normal: Tensor
    variation: Tensor

    def __init__(self, config: VariationModelConfig) -> None:
        super().__init__(config)
        self.register_buffer("normal", torch.zeros(3, *config.image_size))
        self.register_buffer("variation", torch.ones(3, *config.image_size))

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:  # noqa: ARG002 (no chance)
        """Learn each pixel's normal value and variation.

        Raises:
            DataError: fewer than two images.
        """
        if len(pixels) < 2:
            raise DataError(
                f"variation_model needs at least 2 good images to learn a variation from, got {len(pixels)}"
            )
        summarise = _standard if self.config.statistics == "standard" else _robust
        parts = [
            summarise(pixels[:, top : top + ROWS]) for top in counted(range(0, pixels.shape[1], ROWS), "rows", "strip")
        ]
        normal, variation = (np.concatenate(planes).transpose(2, 0, 1) / 255 for planes in zip(*parts, strict=True))
        self.normal = torch.from_numpy(normal).float().to(self.device)
        self.variation = torch.from_numpy(variation).float().to(self.device).clamp_min(self.config.min_variation)

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return each colour's difference from the normal value, in units of its variation."""
        return Residuals((images - self.normal) / self.variation)

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the largest difference among the colours."""
        return residuals.values.abs().amax(1)


def _standard(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (N − 1), summed up image by image in integers: exactly."""
    total = np.zeros(pixels.shape[1:], np.int64)
    squares = np.zeros_like(total)
    for image in pixels:
        total += image
        squares += image.astype(np.int64) ** 2
    count = len(pixels)
    return total / count, np.sqrt((count * squares - total**2) / (count * (count - 1)))


def _robust(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return median and scaled median absolute deviation, which a few bad training images do not move."""
    median = np.median(pixels, axis=0)
    return median, MAD_TO_DEVIATION * np.median(np.abs(pixels - median), axis=0)
