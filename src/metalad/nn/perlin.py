"""Perlin noise (Perlin 2002): smooth random fields, thresholded to random regions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

MAX_EXPONENT = 5
"""Cells along a side are 1, 2, 4, ... up to 2 to this power."""
MIN_CELL = 2
"""Smallest side of a cell, in positions: the noise is 0 at the corners of the cells."""


def perlin_noise(size: tuple[int, int], cells: tuple[int, int]) -> Float[Tensor, "height width"]:
    """Return a field of about [-1, 1] that is 0 at the corners of a grid of cells, from torch's random generator.

    size: height and width. cells: number of cells down and across.
    """
    angles = 2 * math.pi * torch.rand(cells[0] + 1, cells[1] + 1)
    gradients = torch.stack([angles.cos(), angles.sin()], -1)
    down, across = (torch.arange(side) * (count / side) for side, count in zip(size, cells, strict=True))
    row, column = down.long(), across.long()
    y, x = torch.meshgrid(down - row, across - column, indexing="ij")

    def corner(dy: int, dx: int) -> Tensor:
        gradient = gradients[row + dy][:, column + dx]
        return (y - dy) * gradient[..., 0] + (x - dx) * gradient[..., 1]

    top, bottom = (torch.lerp(corner(dy, 0), corner(dy, 1), _fade(x)) for dy in (0, 1))
    return math.sqrt(2) * torch.lerp(top, bottom, _fade(y))


def random_perlin_noise(count: int, size: tuple[int, int]) -> Float[Tensor, "count height width"]:
    """Return fields with a random power of two of cells along each side, at most 32, and at most half the positions."""

    def cells(side: int) -> int:
        largest = min(MAX_EXPONENT, int(math.log2(max(1, side // MIN_CELL))))
        return 1 << int(torch.randint(largest + 1, ()))

    return torch.stack([perlin_noise(size, (cells(size[0]), cells(size[1]))) for _ in range(count)])


def _fade(fraction: Tensor) -> Tensor:
    return fraction**3 * (fraction * (6 * fraction - 15) + 10)
