"""Antialiased reduction of images, which runtimes of exported graphs do not compute as torch does."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Reduction(nn.Module):
    """Bilinear reduction of images to a smaller size with an antialiasing filter (triangular).

    In an exported graph it is two matrix products: OpenVINO's resizing ignores the filter.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], smaller: tuple[int, int]) -> None:
        """Create the reduction from images of `size` (height, width) to `smaller`."""
        super().__init__()
        self.size = smaller
        for name, side, smaller_side in zip(("rows", "columns"), size, smaller, strict=True):
            identity = torch.eye(side)[None, None]
            matrix = F.interpolate(identity, (smaller_side, side), mode="bilinear", antialias=True)[0, 0]
            self.register_buffer(name, matrix, persistent=False)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels down across"]:
        """Return the reduced images."""
        if torch.compiler.is_compiling():
            return self.rows @ images @ self.columns.T
        return F.interpolate(images, self.size, mode="bilinear", antialias=True)
