"""Photometric normalization: brings an image to the average brightness and contrast of defect-free images.

Changes of illumination are not defects. Brightness is always corrected. Contrast is corrected by the amount that it
varies between defect-free images: a defect also changes the global contrast, more than the brightness, so that an
unusual contrast is informative if all defect-free images have the same contrast.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalad.nn.means import plane_mean

MAX_GAIN = 2.0
"""Maximum factor by which brightness and contrast are increased or decreased."""
CONTRAST_OF_CONTENT = 0.15
"""Assumed standard deviation of the log contrast caused by image content, defects included, not by illumination."""
MIN_LUMINANCE = 1 / 255
"""Lower bound of brightness and of the standard deviation of luminance: one gray level."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Luminance weights of red, green and blue (ITU-R BT.601)."""


def luminance(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Return the luminance of RGB images."""
    return (images * images.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)


class PhotometricNormalization(nn.Module):
    """Normalizes brightness and contrast of an image to the geometric means over defect-free images.

    brightness: mean luminance. contrast: standard deviation of the luminance divided by the brightness.
    adjust_contrast: whether contrast is normalized at all.
    exponents: strength of the correction of brightness and of contrast; 0: none (before `fit`), 1: full.
    """

    brightness: Tensor
    contrast: Tensor
    exponents: Tensor

    def __init__(self, *, adjust_contrast: bool = True) -> None:
        super().__init__()
        self.adjust_contrast = adjust_contrast
        self.register_buffer("brightness", torch.ones(()))
        self.register_buffer("contrast", torch.ones(()))
        self.register_buffer("exponents", torch.zeros(2))

    def fit(self, batches: Iterable[Float[Tensor, "_ 3 _ _"]]) -> None:
        """Compute mean brightness, mean contrast and exponents from defect-free images."""
        logs = torch.cat([torch.stack(self._brightness_and_contrast(batch)).log() for batch in batches], 1)
        variance, mean = torch.var_mean(logs, 1, correction=0)
        self.brightness.copy_(mean[0].exp())
        self.contrast.copy_(mean[1].exp())
        self.exponents[0] = 1.0
        self.exponents[1] = variance[1] / (variance[1] + CONTRAST_OF_CONTENT**2) if self.adjust_contrast else 0.0

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Return normalized RGB images; values of images in [0, 1] can leave this range."""
        brightness, contrast = self._brightness_and_contrast(images)
        gain = (self.brightness / brightness).clamp(1 / MAX_GAIN, MAX_GAIN) ** self.exponents[0]
        contrast_gain = (self.contrast / contrast).clamp(1 / MAX_GAIN, MAX_GAIN) ** self.exponents[1]
        target = gain * brightness
        scale, offset = gain * contrast_gain, target * (1 - contrast_gain)
        return images * scale[:, None, None, None] + offset[:, None, None, None]

    def _brightness_and_contrast(self, images: Tensor) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Return brightness and contrast of each image."""
        values = luminance(images)[:, 0]
        mean = plane_mean(values)
        brightness = mean.clamp_min(MIN_LUMINANCE)
        deviation = plane_mean((values - mean[:, None, None]).square()).clamp_min(MIN_LUMINANCE**2).sqrt()
        return brightness, deviation / brightness
