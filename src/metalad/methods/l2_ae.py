"""l2-AE: a convolutional autoencoder that minimises the squared error (Bergmann et al., VISAPP 2019 and CVPR 2019).

A good image passes through a code of 100 numbers almost unharmed; a defect, never seen in training, does not. The map
is the squared error.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from metalad.detectors.autoencoder import AutoencoderConfig, AutoencoderDetector


@dataclass(frozen=True, kw_only=True)
class L2AutoencoderConfig(AutoencoderConfig):
    """Settings of l2-AE; 1.08M parameters."""


class L2Autoencoder(AutoencoderDetector):
    """l2-AE: the autoencoder sees colours and minimises their squared error."""

    name = "l2_ae"
    config: L2AutoencoderConfig

    def error(
        self, rebuilt: Float[Tensor, "batch 3 height width"], seen: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return the squared error of each colour."""
        return (rebuilt - seen).square()

    def mean_error(
        self, rebuilt: Float[Tensor, "batch 3 height width"], seen: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, ""]:
        """Return the mean squared error."""
        return self.error(rebuilt, seen).mean()
