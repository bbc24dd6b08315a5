"""SSIM-AE: a convolutional autoencoder that maximises structural similarity (Bergmann et al., VISAPP 2019, CVPR 2019).

The squared error looks at each pixel alone; structural similarity compares windows by brightness, contrast and
structure. The network sees grey images, and the map is one minus the similarity.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from metalad.detectors.autoencoder import AutoencoderConfig, AutoencoderDetector
from metalad.nn.losses import mean_ssim, padded_ssim_map
from metalad.nn.photometric import grey


@dataclass(frozen=True, kw_only=True)
class SsimAutoencoderConfig(AutoencoderConfig):
    """Settings of SSIM-AE; 1.08M parameters."""


class SsimAutoencoder(AutoencoderDetector):
    """SSIM-AE: the autoencoder sees grey and maximises structural similarity."""

    name = "ssim_ae"
    channels = 1
    config: SsimAutoencoderConfig

    def seen(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
        """Return grey images."""
        return grey(images)

    def error(
        self, rebuilt: Float[Tensor, "batch 1 height width"], seen: Float[Tensor, "batch 1 height width"]
    ) -> Float[Tensor, "batch 1 height width"]:
        """Return one minus the structural similarity around each pixel, in [0, 2]."""
        return (1 - padded_ssim_map(rebuilt, seen)).clamp_min(0)  # rounding may leave it just below 0

    def mean_error(
        self, rebuilt: Float[Tensor, "batch 1 height width"], seen: Float[Tensor, "batch 1 height width"]
    ) -> Float[Tensor, ""]:
        """Return one minus the mean structural similarity, where the whole window fits."""
        return 1 - mean_ssim(rebuilt, seen)
