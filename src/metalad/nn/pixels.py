"""Pixels."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Pixels = UInt8[np.ndarray, "_images height width 3"]


def to_batch(
    pixels: UInt8[np.ndarray, "images height width 3"], device: torch.device | str = "cpu"
) -> Float[Tensor, "images 3 height width"]:
    """Turn decoded images into what a detector takes: planes of RGB in [0, 1]."""
    # Sorted into planes where they are going: a GPU does in no time what takes the CPU longer than launching a step.
    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return images.permute(0, 3, 1, 2).contiguous().float().div_(255)


def thinned(pixels: Pixels, most: int) -> Pixels:
    """Return at most so many images, spread evenly over all."""
    if len(pixels) <= most:
        return pixels
    return np.take(pixels, np.linspace(0, len(pixels) - 1, most).round().astype(int), axis=0)


def batches(pixels: Pixels, device: torch.device, size: int = 16, most: int = 512) -> Iterator[Tensor]:
    """Yield images in batches, at most so many, spread over all of them."""
    step = max(1, math.ceil(len(pixels) / most))
    chosen = pixels[::step]
    for start in range(0, len(chosen), size):
        yield to_batch(chosen[start : start + size], device)
