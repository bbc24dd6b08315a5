"""Bring every image to the light that good images are usually taken in: lamps age, clouds pass, and nothing is broken.

Two numbers of the whole image are taken off: its brightness, always, and its contrast as far as good images differ in
it. What is abnormal changes them too, contrast more than brightness; where all good images have one contrast, another
one is news.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

MAX_GAIN = 2.0
"""An image is made brighter or darker, flatter or starker, by so many times at most."""
CONTRAST_OF_CONTENT = 0.15
"""By about so much (standard deviation of the logarithm) what is in the picture changes its contrast, a defect too."""
BLACK = 1 / 255
"""Nothing is darker, and nothing flatter, than a grey level."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""


def grey(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Return the luminance of RGB images."""
    return (images * images.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)


class PhotometricNormalization(nn.Module):
    """The usual brightness and contrast of good images, and how to bring any image to them.

    brightness: mean luminance. contrast: standard deviation of the luminance, as a part of the brightness. Of good
        images, the geometric mean of either.
    stretches: whether contrast is changed at all.
    say: powers by which an image's deviations in brightness and in contrast are undone: 0 not at all, as long as
        nothing is learnt; 1 wholly.
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
        """Learn the usual light from good images."""
        logs = torch.cat([torch.stack(self._measured(batch)).log() for batch in batches], 1)
        variance, mean = torch.var_mean(logs, 1, correction=0)
        self.brightness.copy_(mean[0].exp())
        self.contrast.copy_(mean[1].exp())
        self.exponents[0] = 1.0
        self.exponents[1] = variance[1] / (variance[1] + CONTRAST_OF_CONTENT**2) if self.adjust_contrast else 0.0

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Return RGB images in the usual light; of images in [0, 1] some values may come to lie outside."""
        brightness, contrast = self._measured(images)
        gain = (self.brightness / brightness).clamp(1 / MAX_GAIN, MAX_GAIN) ** self.exponents[0]
        contrast_gain = (self.contrast / contrast).clamp(1 / MAX_GAIN, MAX_GAIN) ** self.exponents[1]
        centre = gain * brightness
        scale, offset = gain * contrast_gain, centre * (1 - contrast_gain)
        return images * scale[:, None, None, None] + offset[:, None, None, None]

    def _measured(self, images: Tensor) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Return each image's brightness, and its contrast as a part of that."""
        values = grey(images).flatten(1)
        brightness = values.mean(1).clamp_min(BLACK)
        spread = (values - values.mean(1, keepdim=True)).square().mean(1).clamp_min(BLACK**2).sqrt()
        return brightness, spread / brightness
