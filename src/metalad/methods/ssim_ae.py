"""SSIM-AE: a convolutional autoencoder that maximizes structural similarity (Bergmann et al., VISAPP 2019, CVPR 2019).

Structural similarity compares windows by luminance, contrast and structure, whereas the squared error treats pixels
independently. The network's input is the gray image. The anomaly map is one minus the similarity.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from metalad.detectors.autoencoder import AutoencoderConfig, AutoencoderDetector
from metalad.nn.losses import mean_ssim, padded_ssim_map
from metalad.nn.photometric import luminance


@dataclass(frozen=True, kw_only=True)
class SsimAutoencoderConfig(AutoencoderConfig):
    """Settings of SSIM-AE; 1.08M parameters."""


class SsimAutoencoder(AutoencoderDetector):
    """SSIM-AE: the autoencoder of gray images, trained on structural similarity."""

    name = "ssim_ae"
    channels = 1
    config: SsimAutoencoderConfig

    def network_input(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
        """Return the gray images, the network's input."""
        return luminance(images)

    def error(
        self, reconstruction: Float[Tensor, "batch 1 height width"], inputs: Float[Tensor, "batch 1 height width"]
    ) -> Float[Tensor, "batch 1 height width"]:
        """Return one minus the structural similarity around each pixel, in [0, 2]."""
        return (1 - padded_ssim_map(reconstruction, inputs)).clamp_min(0)  # rounding may give a value just below 0

    def mean_error(
        self, reconstruction: Float[Tensor, "batch 1 height width"], inputs: Float[Tensor, "batch 1 height width"]
    ) -> Float[Tensor, ""]:
        """Return one minus the mean structural similarity, over windows inside the image."""
        return 1 - mean_ssim(reconstruction, inputs)
