"""PatchCore (Roth et al. 2022, arXiv:2106.08265): how far is a patch's feature from every normal one?

The features of all patches of the normal images, thinned to those that cover them best, are kept as a bank. A
patch is as abnormal as its feature is far from the nearest of the bank. Nothing is trained.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from metalad.detectors.base import DetectorConfig, FittedDetector
from metalad.detectors.density.codebook import nearest
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone, neighbourhoods
from metalad.nn.networks import Tap
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import setting

BATCH_SIZE = 16
ROUNDING = 1e-5
"""Points are looked at although they are too far by so much of the squared lengths, which expanded squares lose."""


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig(DetectorConfig):
    """Settings of PatchCore; the paper's, but for the backbone and the cap on the bank."""

    image_size: tuple[int, int] = setting((224, 224), "height and width that images are resized to, in pixels")
    backbone: str = setting("lite0", "network that gives the features; but for lite0-2, name its weights too")
    weights: str | None = setting(None, "weights file of the backbone; none: those that are installed")
    taps: tuple[Tap, ...] = setting(("s4", "s8", "s16"), "where features are taken")
    grid: Tap = setting("s8", "grid of patches, one of the taps")
    bank_fraction: float = setting(0.1, "part of all patches that the bank keeps")
    bank_size: int = setting(10_000, "vectors that the bank keeps at most")
    candidates: int = setting(50_000, "patches, chosen by chance, that the bank is chosen from, at most")
    projection: int = setting(128, "dimensions in which the bank is chosen, by random projection")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if not 0 < self.bank_fraction <= 1:
            raise ConfigError(f"bank_fraction is {self.bank_fraction}; it must be more than 0 and at most 1")
        if min(self.bank_size, self.projection, self.candidates) < 1:
            raise ConfigError("bank_size, candidates and projection must be at least 1")
        if self.grid not in self.taps:
            raise ConfigError(f"grid is {self.grid}; it must be one of the taps, {', '.join(self.taps)}")


class PatchCore(FittedDetector):
    """PatchCore: a frozen backbone and a bank of normal patch features."""

    name = "patchcore"
    scored_smoothed = False  # the most abnormal patch counts, as it is
    config: PatchCoreConfig
    bank: Tensor

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, config.taps)
        self.register_buffer("bank", torch.zeros(0, 0))

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:
        """Fill the bank.

        Raises:
            ConfigError: no weights for the backbone. DataError: no image.
        """
        if not len(pixels):
            raise DataError("patchcore needs at least 1 good image to learn from, got 0")
        self.backbone.load(self.config.weights)
        self.backbone.to(self.device)
        with torch.no_grad():
            patches, total = self._candidates(pixels, seed)
            count = min(math.ceil(self.config.bank_fraction * total), self.config.bank_size, len(patches))
            self.bank = patches[coreset(_projected(patches, self.config.projection, seed), count, seed)]

    def patches(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch down across channels"]:
        """Return the feature of each patch: each tap averaged over 3×3, brought to one grid, one after the other."""
        maps = self.backbone(images)
        height, width = maps[self.config.taps.index(self.config.grid)].shape[-2:]
        return neighbourhoods(maps, (height, width)).permute(0, 2, 3, 1)

    def distances(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch down across"]:
        """Return the Euclidean distance of each patch's feature from the nearest of the bank."""
        patches = self.patches(images)
        flat = patches.flatten(0, 2)
        # The differences, not the expanded squares, give the distance: those lose all digits near 0.
        lengths: Tensor = torch.linalg.vector_norm(flat - self.bank[nearest(flat, self.bank)], dim=1)
        return lengths.reshape(patches.shape[:3])

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return each pixel's distance, its patch's."""
        return Residuals(F.interpolate(self.distances(images)[:, None], images.shape[-2:], mode="nearest"))

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the distance itself."""
        return residuals.values[:, 0]

    def _candidates(self, pixels: np.ndarray, seed: int) -> tuple[Tensor, int]:
        """Return the patches that the bank is chosen from, and of how many they were drawn."""
        stride = int(self.config.grid[1:])
        height, width = self.config.image_size
        each = -(-height // stride) * -(-width // stride)
        total = len(pixels) * each
        drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[: self.config.candidates]
        drawn, kept = drawn.sort().values.to(self.device), []
        for start in counted(range(0, len(pixels), BATCH_SIZE), "features", "batch"):
            found = self.patches(to_batch(pixels[start : start + BATCH_SIZE], self.device)).flatten(0, 2)
            first = start * each
            kept.append(found[drawn[(drawn >= first) & (drawn < first + len(found))] - first])
        return torch.cat(kept), total


def coreset(points: Float[Tensor, "points channels"], count: int, seed: int) -> Int[Tensor, " count"]:
    """Choose `count` points greedily, each the one farthest from those chosen before; the first by chance.

    Exact k-centre greedy (Gonzalez 1985). Only the few points that the newest may lie nearest to, by the expanded
    squares, have their distance from it taken; one matrix-vector product a step finds them.
    """
    generator = torch.Generator().manual_seed(seed)
    newest = int(torch.randint(len(points), (1,), generator=generator))
    chosen, squares = [newest], points.square().sum(1)
    distance = torch.linalg.vector_norm(points - points[newest], dim=1)
    reach = distance.square()
    for _ in counted(range(1, count), "bank", "feature"):
        distance[newest] = reach[newest] = -1  # never again, even where points repeat
        newest = int(distance.argmax())
        centre = points[newest]
        apart = torch.addmv(squares, points, centre, alpha=-2).add_(squares[newest])
        near = (apart < reach + ROUNDING * (squares + squares[newest])).nonzero()[:, 0]
        closer = torch.linalg.vector_norm(points.index_select(0, near) - centre, dim=1)
        better = closer < distance[near]
        changed, closer = near[better], closer[better]
        distance[changed], reach[changed] = closer, closer.square()
        chosen.append(newest)
    return torch.tensor(chosen, device=points.device)


def _projected(points: Tensor, dimensions: int, seed: int) -> Tensor:
    """Project at random, keeping distances nearly (Johnson & Lindenstrauss 1984); the bank keeps the originals."""
    if points.shape[1] <= dimensions:
        return points
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(points.shape[1], dimensions, generator=generator) / math.sqrt(dimensions)
    return points @ matrix.to(points.device)
