"""PCA."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

COMPONENTS = 48
"""Principal components, at most."""

IMAGES_PER_COMPONENT = 4
"""More components would learn the images by heart."""


class PrincipalComponents(nn.Module):
    """What an image would be if it were made of what good images differ by: their mean and their main components.

    mean: [channels, height, width]. directions: [components, channels × height × width], orthonormal.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(0, 0, 0))
        self.register_buffer("directions", torch.zeros(0, 0))

    def fit(self, images: Float[Tensor, "images channels height width"]) -> None:
        """Learn mean and components: one for every `IMAGES_PER_COMPONENT` images, at most `COMPONENTS`."""
        self.mean = images.mean(0)
        centred = (images - self.mean).flatten(1)
        count = min(COMPONENTS, len(images) // IMAGES_PER_COMPONENT)
        # The Gram matrix has as many rows as there are images; the covariance would have as many as pixels.
        values, vectors = torch.linalg.eigh((centred @ centred.T).double())
        kept = values[-count:].clamp_min(torch.finfo(torch.float32).tiny) if count else values[:0]
        self.directions = (vectors[:, len(values) - count :] / kept.sqrt()).float().T @ centred

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the nearest image that mean and components can make."""
        centred = (images - self.mean).flatten(1)
        return self.mean + (centred @ self.directions.T @ self.directions).reshape(images.shape)
