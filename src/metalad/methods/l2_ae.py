"""l2-AE: a convolutional autoencoder that minimizes the squared error (Bergmann et al., VISAPP 2019 and CVPR 2019).

The autoencoder reconstructs good images almost exactly from a code of 100 numbers. It does not reconstruct defects,
which are not in the training images. The anomaly map is the squared error.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from metalad.detectors.autoencoder import AutoencoderConfig, AutoencoderDetector


@dataclass(frozen=True, kw_only=True)
class L2AutoencoderConfig(AutoencoderConfig):
    """Settings of l2-AE; 1.08M parameters."""


class L2Autoencoder(AutoencoderDetector):
    """l2-AE: the autoencoder of RGB images, trained on the squared error."""

    name = "l2_ae"
    config: L2AutoencoderConfig

    def error(
        self, reconstruction: Float[Tensor, "batch 3 height width"], images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return the squared error of each color."""
        return (reconstruction - images).square()

    def mean_error(
        self, reconstruction: Float[Tensor, "batch 3 height width"], images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, ""]:
        """Return the mean squared error."""
        return self.error(reconstruction, images).mean()
