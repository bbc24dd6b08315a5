"""What methods share that rebuild an image and hold the difference against it."""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from metalad.detectors.base import GradientDetector
from metalad.detectors.residuals import Residuals


class Reconstructor(GradientDetector):
    """A method that learns to rebuild good images; what it rebuilds otherwise is out of place."""

    @abstractmethod
    def reconstruct(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Rebuild RGB images in [0, 1]; values are near that range but need not keep to it."""

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return reconstruction minus image; its square, summed over colours, is the error map of most papers."""
        rebuilt = self.reconstruct(images)
        return Residuals(rebuilt - images, rebuilt.clamp(0, 1))
