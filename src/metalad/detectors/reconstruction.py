"""Base class of the methods that score an image by its difference from a reconstruction."""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from metalad.detectors.base import GradientDetector
from metalad.detectors.residuals import Residuals


class Reconstructor(GradientDetector):
    """A method that is trained to reconstruct good images; a large reconstruction error indicates an anomaly."""

    @abstractmethod
    def reconstruct(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Return the reconstructions of RGB images in [0, 1]; their values may lie slightly outside of that range."""

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return reconstruction minus image; its square, summed over colors, is the error map of most papers."""
        reconstruction = self.reconstruct(images)
        return Residuals(reconstruction - images, reconstruction.clamp(0, 1))
