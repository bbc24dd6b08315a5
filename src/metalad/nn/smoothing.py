"""Smoothing."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

EDGE = 0.06
"""Differences of brightness well above this part of the whole image's are edges to a guided filter."""

COARSER = 2
"""A guided filter finds its lines on a grid of every so many pixels."""


def gaussian_matrix(size: int, sigma: float) -> Float[Tensor, "size size"]:
    """Return the matrix that filters a line of `size` pixels with a Gaussian of `sigma` pixels.

    The ends are mirrored and the kernel is cut at 4 sigma, as `scipy.ndimage.gaussian_filter` does; each row
    sums to 1. Two products with such matrices smooth an image exactly, and export as plain matrix products.
    """
    if sigma <= 0:
        return torch.eye(size)
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel /= kernel.sum()
    columns = (torch.arange(size)[:, None] + offsets) % (2 * size)
    columns = torch.where(columns < size, columns, 2 * size - 1 - columns)
    return torch.zeros(size, size, dtype=torch.double).scatter_add_(1, columns, kernel.expand(size, -1)).float()


class Smoothing(nn.Module):
    """A Gaussian filter over maps, as two banded matrix products."""

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int, sigma: float) -> None:
        super().__init__()
        self.register_buffer("rows", gaussian_matrix(height, sigma), persistent=False)
        self.register_buffer("columns", gaussian_matrix(width, sigma), persistent=False)

    def forward(self, maps: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch height width"]:
        """Return the smoothed maps."""
        return self.rows @ maps @ self.columns.T


class GuidedSmoothing(nn.Module):
    """A filter over maps that keeps the edges of an image: the guided filter (He, Sun, Tang 2010).

    Around each place the filtered map is slope · brightness + offset, by least squares under a Gaussian window; both
    are found on a coarser grid (He, Sun 2015). Where the image is plain the slope is 0, and what is left is the
    Gaussian filter of `sigma`.
    """

    def __init__(self, height: int, width: int, sigma: float) -> None:
        super().__init__()
        # The window is laid over twice, over the map and over slope and offset.
        self.window = Smoothing(-(-height // COARSER), -(-width // COARSER), sigma / math.sqrt(2) / COARSER)

    def forward(
        self, maps: Float[Tensor, "batch height width"], images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch height width"]:
        """Return the filtered maps; they may leave the range of the given ones by a little."""
        guide = images.mean(1)
        guide = guide / guide.mean((1, 2), keepdim=True).clamp_min(torch.finfo(guide.dtype).tiny)
        planes = F.avg_pool2d(torch.stack([guide, maps], 1), COARSER, ceil_mode=True)
        brightness, level = planes.unbind(1)
        mean_brightness, mean = self.window(planes).unbind(1)
        variance = self.window(brightness.square()) - mean_brightness.square()
        slope = (self.window(brightness * level) - mean_brightness * mean) / (variance + EDGE**2)
        lines = self.window(torch.stack([slope, mean - slope * mean_brightness], 1))
        slope, offset = F.interpolate(lines, guide.shape[-2:], mode="bilinear").unbind(1)
        return slope * guide + offset
