"""Conversion of uint8 image arrays to tensors."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from metalad.data.splitting import subsampled_indices as subsampled_indices

Pixels = UInt8[np.ndarray, "_images height width 3"]


def to_batch(
    pixels: UInt8[np.ndarray, "images height width 3"], device: torch.device | str = "cpu"
) -> Float[Tensor, "images 3 height width"]:
    """Convert decoded RGB images in 0..255 to a float batch in [0, 1] with the channels first."""
    # Permuted on the target device: on the CPU this takes longer than launching a training step.
    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return images.permute(0, 3, 1, 2).contiguous().float().div_(255)


def subsampled(pixels: Pixels, limit: int) -> Pixels:
    """Return at most `limit` images, evenly spaced over all images."""
    if len(pixels) <= limit:
        return pixels
    return np.take(pixels, subsampled_indices(len(pixels), limit), axis=0)


def batches(pixels: Pixels, device: torch.device, size: int = 16, limit: int = 512) -> Iterator[Tensor]:
    """Yield batches of at most `size` images, of at most `limit` images that are evenly spaced over all."""
    selected = subsampled_indices(len(pixels), limit)
    for start in range(0, len(selected), size):
        yield to_batch(pixels[selected[start : start + size]], device)
