"""The variation model (Steger, Ulrich & Wiedemann 2008, "Machine Vision Algorithms and Applications", 3.4).

For each pixel of an aligned object, the mean and the variation of the gray value are computed over the good images. A
pixel's anomaly score is its deviation from the mean, divided by the variation. Nothing is trained.
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
from metalad.runtime.settings import auto_size, setting

MAD_TO_DEVIATION = 1.4826
"""Standard deviation of a Gaussian distribution, in median absolute deviations."""
ROWS = 16
"""Image rows per strip: sorting the whole images at once would need two more copies of all images in memory."""


@dataclass(frozen=True, kw_only=True)
class VariationModelConfig(DetectorConfig):
    """Settings of the variation model."""

    image_size: tuple[int, int] = auto_size(256, 8)
    smoothing_sigma: float = setting(1.0, "sigma of the Gaussian smoothing of the map, in resized pixels; 0 = off")
    statistics: Literal["standard", "robust"] = setting(
        "standard", "standard: mean and deviation; robust: median and median absolute deviation"
    )
    min_variation: float = setting(2 / 255, "lower bound of a pixel's variation, for values in [0, 1]")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if not 0 < self.min_variation < 1:
            raise ConfigError(f"min_variation is {self.min_variation}; it must lie between 0 and 1")


class VariationModel(FittedDetector):
    """The variation model: center and variation of each pixel and color.

    normal, variation: [3, height, width], mean (or median) and variation of good images; values in [0, 1].
    """

    name = "variation_model"
    min_images = 2
    config: VariationModelConfig
    normal: Tensor
    variation: Tensor

    def __init__(self, config: VariationModelConfig) -> None:
        super().__init__(config)
        self.register_buffer("normal", None)
        self.register_buffer("variation", None)

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:  # noqa: ARG002 (deterministic)
        """Fit center and variation of each pixel.

        Raises:
            DataError: fewer than two images.
        """
        if len(pixels) < 2:
            raise DataError(f"variation_model needs at least 2 good images, got {len(pixels)}")
        statistics_of = _standard if self.config.statistics == "standard" else _robust
        parts = [
            statistics_of(pixels[:, top : top + ROWS])
            for top in counted(range(0, pixels.shape[1], ROWS), "rows", "strip")
        ]
        normal, variation = (np.concatenate(planes).transpose(2, 0, 1) / 255 for planes in zip(*parts, strict=True))
        self.normal = torch.from_numpy(normal).float().to(self.device)
        self.variation = torch.from_numpy(variation).float().to(self.device).clamp_min(self.config.min_variation)

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return each color's deviation from the center, divided by its variation."""
        return Residuals((images - self.normal) / self.variation)

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the largest absolute deviation among the colors."""
        return residuals.values.abs().amax(1)


def _standard(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (N − 1); the sums are integers, hence exact."""
    total = np.zeros(pixels.shape[1:], np.int64)
    squares = np.zeros_like(total)
    for image in pixels:
        total += image
        squares += image.astype(np.int64) ** 2
    count = len(pixels)
    return total / count, np.sqrt((count * squares - total**2) / (count * (count - 1)))


def _robust(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return median and scaled median absolute deviation, robust to a few defective training images."""
    median = np.median(pixels, axis=0)
    return median, MAD_TO_DEVIATION * np.median(np.abs(pixels - median), axis=0)
