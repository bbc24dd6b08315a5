"""Shifts, turns and flips of training images, drawn anew in every step from torch's own chance (resumable: seeded)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from metalad.runtime.errors import ConfigError


def check_augmentation(degrees: float, shift: float, brightness: float = 0.0) -> None:
    """Check how far training images are turned, moved and lit otherwise.

    Raises:
        ConfigError: more than half a turn, than half of the side, or than all light.
    """
    if not (0 <= degrees <= 180 and 0 <= shift < 0.5):
        raise ConfigError("degrees must lie between 0 and 180, shift between 0 and 0.5")
    if not 0 <= brightness < 1:
        raise ConfigError("light must lie between 0 and 1")


def augment(
    images: Float[Tensor, "batch channels height width"],
    *,
    degrees: float = 0.0,
    shift: float = 0.0,
    flip: bool = False,
    brightness: float = 0.0,
) -> Float[Tensor, "batch channels height width"]:
    """Return each image turned, shifted and mirrored by chance, as Bergmann et al. (CVPR 2019) augment objects.

    What comes in at the border is the image's own mirror image. Light changes as on a line, where lamps age.

    Args:
        images: a batch.
        degrees: turn by up to so many, either way.
        shift: move by up to this part of the side, either way.
        flip: mirror half of the images left to right; only for things that have no left and right.
        light: brighten or darken by up to this part; of images in [0, 1], what exceeds 1 is cut off.
    """
    count, _, height, width = images.shape

    def rng() -> Tensor:  # always the CPU's, so that a GPU trains on the same images
        return torch.rand(count).to(images.device)

    def drawn(limit: float) -> Tensor:
        return (2 * rng() - 1) * limit

    angle, across, down = drawn(math.radians(degrees)), drawn(2 * shift), drawn(2 * shift)
    mirrored = torch.where(rng() < 0.5, -1.0, 1.0) if flip else torch.ones_like(angle)
    cosine, sine, aspect = angle.cos(), angle.sin(), height / width
    matrix = torch.stack(
        [
            torch.stack([mirrored * cosine, -sine * aspect, across], 1),
            torch.stack([mirrored * sine / aspect, cosine, down], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return (images * (1 + drawn(brightness))[:, None, None, None]).clamp_max(1) if brightness else images
