"""Losses that methods share: SSIM and its sum with the absolute error."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

WINDOW = 11
SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2


@cache
def window_matrix(size: int, device: torch.device) -> Float[Tensor, "valid size"]:
    """Return the banded matrix that applies SSIM's 11-tap Gaussian window at its valid places along a line."""
    offsets = torch.arange(WINDOW) - WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets.double() / SIGMA) ** 2)
    kernel /= kernel.sum()
    band = torch.zeros(size - WINDOW + 1, size, dtype=torch.double)
    for row in range(len(band)):
        band[row, row : row + WINDOW] = kernel
    return band.float().to(device)


def ssim_map(
    images: Float[Tensor, "batch channels height width"],
    others: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels valid_height valid_width"]:
    """Return the structural similarity at every place where the whole 11×11 window fits (Wang 2004, eq. 13).

    Values in [0, 1] are expected (data range 1); the result lies in [-1, 1], 1 where the two agree. The window
    is applied as two banded matrix products, several times faster on a CPU than a depth-wise convolution.
    """
    # In half precision the variances, small differences of means, would drown; autocast must not touch them.
    with torch.autocast(images.device.type, enabled=False):
        rows = window_matrix(images.shape[-2], images.device)
        columns = window_matrix(images.shape[-1], images.device).T
        mean = rows @ images @ columns
        other_mean = rows @ others @ columns
        variance = rows @ (images * images) @ columns - mean * mean
        other_variance = rows @ (others * others) @ columns - other_mean * other_mean
        covariance = rows @ (images * others) @ columns - mean * other_mean
    numerator = (2 * mean * other_mean + C1) * (2 * covariance + C2)
    return numerator / ((mean**2 + other_mean**2 + C1) * (variance + other_variance + C2))


def l1_ssim_loss(
    reconstruction: Float[Tensor, "batch channels height width"],
    images: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """Return the mean absolute error minus the mean SSIM, in [-1, 2] (De Nardin 2022, eq. 2-4).

    The paper writes a sum over pixels in eq. 2; with it SSIM would weigh 1 part in 49,152.
    """
    return (reconstruction - images).abs().mean() - ssim_map(reconstruction, images).mean()
