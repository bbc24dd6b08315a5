"""Shared losses: SSIM, and its combination with the absolute error."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

WINDOW = 11
SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2
CHUNK = 8
"""Images whose moments are computed at once: 8 of 128×128 RGB need 1.5 MB per moment and fit the cache."""


@cache
def window_matrix(size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Float[Tensor, "valid size"]:
    """Return the banded matrix that applies SSIM's 11-tap Gaussian window at its valid positions along a line."""
    offsets = torch.arange(WINDOW) - WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets.double() / SIGMA) ** 2)
    kernel /= kernel.sum()
    band = torch.zeros(size - WINDOW + 1, size, dtype=torch.double)
    for row in range(len(band)):
        band[row, row : row + WINDOW] = kernel
    return band.to(dtype).to(device)


def ssim_map(
    images: Float[Tensor, "batch channels height width"],
    others: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels valid_height valid_width"]:
    """Return the structural similarity at every position where the whole 11×11 window fits (Wang 2004, eq. 13).

    Inputs are in [0, 1] (data range 1); the result is in [-1, 1], and 1 where both images are equal. The window
    is applied as two banded matrix products, several times faster on a CPU than a depth-wise convolution.
    """
    # Variances are small differences of means: half precision would lose them, so autocast is disabled.
    with torch.autocast(images.device.type, enabled=False):
        rows = window_matrix(images.shape[-2], images.device, images.dtype)
        columns = window_matrix(images.shape[-1], images.device, images.dtype).T
        mean = rows @ images @ columns
        other_mean = rows @ others @ columns
        variance = rows @ (images * images) @ columns - mean * mean
        other_variance = rows @ (others * others) @ columns - other_mean * other_mean
        covariance = rows @ (images * others) @ columns - mean * other_mean
    numerator = (2 * mean * other_mean + C1) * (2 * covariance + C2)
    return numerator / ((mean**2 + other_mean**2 + C1) * (variance + other_variance + C2))


def padded_ssim_map(
    images: Float[Tensor, "batch channels height width"],
    others: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels height width"]:
    """Return `ssim_map` around every pixel; images are mirrored at their border.

    Computed in double precision: in nearly flat regions the variances are small differences of large numbers.
    """
    rows, columns = (_mirrored(side).to(images.device) for side in images.shape[-2:])
    both = (part.index_select(-2, rows).index_select(-1, columns).double() for part in (images, others))
    return ssim_map(*both).float()


def _mirrored(size: int) -> Int[Tensor, " padded"]:
    """Return the indices of a line that is mirrored by half a window at both ends; the end pixel is repeated."""
    index = torch.arange(-(WINDOW // 2), size + WINDOW // 2)
    index = torch.where(index < 0, -1 - index, index)
    return torch.where(index < size, index, 2 * size - 1 - index)


class _MeanSsim(torch.autograd.Function):
    """The mean of `ssim_map`, whose gradient with respect to the first argument is computed in the forward pass.

    A few images at a time stay in the processor's cache from the first product to the last. Plain autograd reads and
    writes memory about fifty times and takes longer than the model that is trained.
    """

    @staticmethod
    def forward(context: Any, images: Tensor, others: Tensor) -> Tensor:
        images, others = images.detach().float(), others.detach().float()
        gradient = torch.empty_like(images)
        total = images.new_zeros(())
        with torch.autocast(images.device.type, enabled=False):
            for chunk in range(0, len(images), CHUNK):
                part = slice(chunk, chunk + CHUNK)
                value, gradient[part] = _ssim_and_gradient(images[part], others[part])
                total += value
        positions = images[:, :, WINDOW - 1 :, WINDOW - 1 :].numel()
        context.save_for_backward(gradient.div_(positions))
        return total / positions

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = context.saved_tensors
        return gradient * gradients[0], None


def _ssim_and_gradient(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the SSIM map of `images` and `others`, and its gradient with respect to `images`.

    With the local moments E[·], SSIM = a₁a₂ / b₁b₂ (Wang 2004, eq. 13); the chain rule gives the derivatives
    by E[x], E[x²] and E[xy], and the transposed window maps these back to the pixels.
    """
    rows = window_matrix(images.shape[-2], images.device)
    columns = window_matrix(images.shape[-1], images.device).T
    mean, other_mean = rows @ images @ columns, rows @ others @ columns
    product = rows @ (images * others) @ columns
    squares = rows @ (images * images + others * others) @ columns  # only the sum of the variances is needed
    means, mean_squares = mean * other_mean, mean * mean + other_mean * other_mean
    a1, a2 = 2 * means + C1, 2 * (product - means) + C2
    b1, b2 = mean_squares + C1, squares - mean_squares + C2
    ssim = a1 * a2 / (b1 * b2)
    by_product = 2 * a1 / (b1 * b2)
    by_square = -ssim / b2
    by_mean = 2 * other_mean * a2 / (b1 * b2) - 2 * mean * ssim / b1 - other_mean * by_product - 2 * mean * by_square
    at_mean, at_product, at_square = (rows.T @ term @ columns.T for term in (by_mean, by_product, by_square))
    return ssim.sum(), at_mean + others * at_product + 2 * images * at_square


def mean_ssim(
    images: Float[Tensor, "batch channels height width"],
    others: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """Return the mean of `ssim_map`; only `images` gets a gradient, at the cost of a forward pass."""
    mean: Tensor = _MeanSsim.apply(images, others)  # type: ignore[no-untyped-call]
    return mean


def l1_ssim_loss(
    reconstruction: Float[Tensor, "batch channels height width"],
    images: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """Return the mean absolute error minus the mean SSIM, in [-1, 2] (De Nardin 2022, eq. 2-4).

    The paper writes a sum over pixels in eq. 2; with it the weight of SSIM would be 1/49,152. Only the reconstruction
    gets a gradient.
    """
    return (reconstruction - images).abs().mean() - mean_ssim(reconstruction, images)
