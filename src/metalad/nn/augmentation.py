"""Random rotations, shifts, flips and brightness changes of training images.

They use torch's global random generator, which the training loop seeds per epoch: a resumed run repeats them.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from metalad.runtime.errors import ConfigError


def check_augmentation(degrees: float, shift: float, brightness: float = 0.0) -> None:
    """Check the limits of the augmentation.

    Raises:
        ConfigError: degrees outside [0, 180], shift outside [0, 0.5), or brightness outside [0, 1).
    """
    if not (0 <= degrees <= 180 and 0 <= shift < 0.5):
        raise ConfigError("degrees must lie between 0 and 180, shift between 0 and 0.5")
    if not 0 <= brightness < 1:
        raise ConfigError("photometric must lie between 0 and 1")


def augment(
    images: Float[Tensor, "batch channels height width"],
    *,
    degrees: float = 0.0,
    shift: float = 0.0,
    flip: bool = False,
    brightness: float = 0.0,
) -> Float[Tensor, "batch channels height width"]:
    """Return each image randomly rotated, shifted and flipped, as Bergmann et al. (CVPR 2019) augment objects.

    The image is mirrored at its border. A brightness change simulates changes of illumination on a production line.

    Args:
        images: a batch.
        degrees: maximum rotation in either direction.
        shift: maximum translation in either direction, as a fraction of the side.
        flip: flip half of the images horizontally; only for objects without a left and a right side.
        brightness: maximum relative change of brightness; values above 1 are clipped.
    """
    count, _, height, width = images.shape

    def uniform() -> Tensor:  # generated on the CPU, so that a GPU trains on the same images
        return torch.rand(count).to(images.device)

    def symmetric(limit: float) -> Tensor:
        return (2 * uniform() - 1) * limit

    angle, across, down = symmetric(math.radians(degrees)), symmetric(2 * shift), symmetric(2 * shift)
    mirrored = torch.where(uniform() < 0.5, -1.0, 1.0) if flip else torch.ones_like(angle)
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
    return (images * (1 + symmetric(brightness))[:, None, None, None]).clamp_max(1) if brightness else images
