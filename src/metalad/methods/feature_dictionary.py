"""The CNN feature dictionary (Napoletano, Piccoli & Schettini 2018, DOI 10.3390/s18010209).

A network trained on ImageNet computes a descriptor for each of many small windows of the good images. K-means clusters
the descriptors, and the cluster centers form the dictionary. A window's anomaly score is the distance of its descriptor
from the nearest dictionary entry. It does not depend on the window's position.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from metalad.detectors.base import DetectorConfig, FittedDetector
from metalad.detectors.density.clustering import k_means
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone
from metalad.nn.networks import Tap
from metalad.nn.parts import in_parts
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import setting

BATCH_SIZE = 1024
"""Windows per forward pass of the network."""


@dataclass(frozen=True, kw_only=True)
class FeatureDictionaryConfig(DetectorConfig):
    """Settings of the feature dictionary; as in Bergmann et al. (CVPR 2019), except backbone and stride."""

    image_size: tuple[int, int] = setting((256, 256), "height and width that images are resized to, in pixels")
    smoothing_sigma: float = setting(0.0, "sigma of the Gaussian smoothing of the map, in resized pixels; 0 = off")
    backbone: str = setting("lite0", "pretrained network that computes the features; all but lite0-2 need weights=PATH")
    weights: str | None = setting(None, "weights file of the backbone; none: the installed weights")
    tap: Tap = setting("s16", "stride of the feature map whose mean over a window is the descriptor")
    window: int = setting(16, "side of a window in pixels")
    stride: int = setting(8, "pixels between windows; the paper's value, 4, takes four times as long")
    enlargement: int = setting(2, "factor by which a window is enlarged before the network")
    samples: int = setting(20_000, "random windows of the good images that the dictionary is fitted on")
    variance: float = setting(0.95, "fraction of the descriptors' variance that the principal components explain")
    dictionary_size: int = setting(10, "entries of the dictionary")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if min(self.window, self.stride, self.enlargement, self.dictionary_size) < 1:
            raise ConfigError("window, stride, enlargement and dictionary_size must be at least 1")
        if self.stride > self.window or (self.window - self.stride) % 2 or max(self.uncovered):
            height, width = self.image_size
            raise ConfigError(
                f"window {self.window} and stride {self.stride} do not tile {height}x{width}; stride must divide size "
                "minus window, and window minus stride must be even and not negative"
            )
        if not 0 < self.variance <= 1:
            raise ConfigError(f"variance is {self.variance}; it must be more than 0 and at most 1")
        if self.samples < self.dictionary_size:
            raise ConfigError(f"samples is {self.samples}; it must be at least dictionary_size, {self.dictionary_size}")

    @property
    def uncovered(self) -> tuple[int, int]:
        """Rows and columns of pixels that no window covers; 1 along a side that is smaller than a window."""
        height, width = ((side - self.window) % self.stride if side >= self.window else 1 for side in self.image_size)
        return height, width

    @property
    def grid(self) -> tuple[int, int]:
        """Number of windows: rows, columns."""
        height, width = ((side - self.window) // self.stride + 1 for side in self.image_size)
        return height, width


class FeatureDictionary(FittedDetector):
    """The feature dictionary: a frozen backbone, principal components, and dictionary entries.

    projection: [channels, components], applied after subtraction of `centre`. dictionary: [entries, components].
    """

    name = "feature_dictionary"
    config: FeatureDictionaryConfig
    centre: Tensor
    projection: Tensor
    dictionary: Tensor

    def __init__(self, config: FeatureDictionaryConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, (config.tap,))
        for name in ("centre", "projection", "dictionary"):
            self.register_buffer(name, None)

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:
        """Fit principal components and dictionary.

        Raises:
            ConfigError: no weights for the backbone. DataError: no image.
        """
        if not len(pixels):
            raise DataError("feature_dictionary needs at least 1 good image, got 0")
        self.backbone.load(self.config.weights)
        self.backbone.to(self.device)
        windows = self._sample(pixels, np.random.default_rng(seed))
        with torch.no_grad():
            parts = counted(torch.split(windows, BATCH_SIZE), "descriptors", "batch")
            described = torch.cat([self.describe(part) for part in parts])
            self.centre, self.projection = principal_components(described, self.config.variance)
            self.dictionary = k_means((described - self.centre) @ self.projection, self.config.dictionary_size, seed)

    def describe(self, windows: Float[Tensor, "windows 3 side side"]) -> Float[Tensor, "windows channels"]:
        """Return each window's descriptor: the mean of its features."""
        side = self.config.window * self.config.enlargement
        parts = []
        for part in in_parts(windows, BATCH_SIZE):
            enlarged = F.interpolate(part, (side, side), mode="bilinear") if self.config.enlargement > 1 else part
            parts.append(self.backbone(enlarged)[0].mean((2, 3)))
        return torch.cat(parts)

    def distances(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch down across"]:
        """Return the distance of each window's descriptor from the nearest dictionary entry."""
        size, stride = self.config.window, self.config.stride
        windows = images.unfold(2, size, stride).unfold(3, size, stride).permute(0, 2, 3, 1, 4, 5)
        reduced = (self.describe(windows.flatten(0, 2)) - self.centre) @ self.projection
        distance = (reduced[:, None] - self.dictionary).square().sum(2).amin(1).sqrt()
        return distance.reshape(-1, *self.config.grid)

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the distance at each pixel: bilinear between window centers, constant outside of them."""
        distances = self.distances(images)[:, None]
        inner = F.interpolate(distances, scale_factor=float(self.config.stride), mode="bilinear")
        border = (self.config.window - self.config.stride) // 2
        return Residuals(F.pad(inner, (border,) * 4, mode="replicate"))

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the distance itself."""
        return residuals.values[:, 0]

    def _sample(self, pixels: np.ndarray, rng: np.random.Generator) -> Tensor:
        size, (height, width) = self.config.window, self.config.image_size
        image = rng.integers(len(pixels), size=self.config.samples)
        top = rng.integers(height - size + 1, size=self.config.samples)
        left = rng.integers(width - size + 1, size=self.config.samples)
        offset = np.arange(size)
        rows, columns = top[:, None, None] + offset[:, None], left[:, None, None] + offset
        return to_batch(pixels[image[:, None, None], rows, columns], self.device)


def principal_components(
    points: Float[Tensor, "points channels"], variance: float
) -> tuple[Float[Tensor, " channels"], Float[Tensor, "channels components"]]:
    """Return the mean and the fewest principal directions that explain a fraction of the variance, largest first."""
    centre = points.double().mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(points.double().T).reshape(len(centre), -1))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    explained = values.cumsum(0) / values.sum().clamp_min(torch.finfo(torch.double).tiny)
    count = min(int((explained < variance - 1e-12).sum()) + 1, len(values))
    return centre.float(), vectors[:, :count].float()
