"""Means over many pixels that every runtime computes with full precision."""

import torch
from jaxtyping import Float
from torch import Tensor


def plane_mean(planes: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch"]:
    """Return the mean over height and width, in two steps.

    Other runtimes than torch add all values one after the other: a sum of 65,536 values of float32 loses two digits,
    sums of 256 none that matter. In an exported graph the first step is a matrix product, because OpenVINO makes one
    mean of two.
    """
    if torch.compiler.is_compiling():
        width = planes.shape[-1]
        return (planes @ planes.new_full((width, 1), 1 / width))[..., 0].mean(-1)
    return planes.mean(-1).mean(-1)
