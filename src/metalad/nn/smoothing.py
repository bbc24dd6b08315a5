"""Gaussian and guided filters of anomaly maps."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.nn.means import plane_mean

EDGE_CONTRAST = 0.06
"""Regularization of the guided filter: brightness differences well above it, relative to the image's mean brightness,
are preserved as edges."""

SUBSAMPLING = 2
"""Factor by which the guided filter downsamples images and maps to compute its linear coefficients."""


def gaussian_matrix(size: int, sigma: float) -> Float[Tensor, "size size"]:
    """Return the matrix that filters a line of `size` pixels with a Gaussian of `sigma` pixels.

    The ends are mirrored and the kernel is truncated at 4 sigma, as in `scipy.ndimage.gaussian_filter`; each row
    sums to 1. Two products with such matrices filter an image exactly, and are exported as matrix products.
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
    """A Gaussian filter of maps, computed as two banded matrix products."""

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
    """A filter of maps that preserves the edges of an image: the guided filter (He, Sun, Tang 2010).

    The filtered map is slope · brightness + offset. Both coefficients are computed at each position by least squares
    under a Gaussian window, on a downsampled grid (He, Sun 2015). In regions of constant brightness the slope is 0, and
    the result is that of a Gaussian filter of `sigma`.
    """

    def __init__(self, height: int, width: int, sigma: float) -> None:
        super().__init__()
        # The window is applied twice: to the map, and to slope and offset.
        self.window = Smoothing(-(-height // SUBSAMPLING), -(-width // SUBSAMPLING), sigma / math.sqrt(2) / SUBSAMPLING)

    def forward(
        self, maps: Float[Tensor, "batch height width"], images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch height width"]:
        """Return the filtered maps; their values can slightly exceed the range of the input."""
        guide = images.mean(1)
        guide = guide / plane_mean(guide)[:, None, None].clamp_min(torch.finfo(guide.dtype).tiny)
        planes = F.avg_pool2d(torch.stack([guide, maps], 1), SUBSAMPLING, ceil_mode=True)
        brightness, level = planes.unbind(1)
        mean_brightness, mean = self.window(planes).unbind(1)
        variance = self.window(brightness.square()) - mean_brightness.square()
        slope = (self.window(brightness * level) - mean_brightness * mean) / (variance + EDGE_CONTRAST**2)
        coefficients = self.window(torch.stack([slope, mean - slope * mean_brightness], 1))
        slope, offset = F.interpolate(coefficients, guide.shape[-2:], mode="bilinear").unbind(1)
        return slope * guide + offset
