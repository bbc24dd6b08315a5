"""Principal components of images, and leading eigenvectors of symmetric matrices."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

COMPONENTS = 48
"""Maximum number of principal components."""

IMAGES_PER_COMPONENT = 4
"""Minimum number of images per component; with fewer images, the components would be overfitted to them."""


class PrincipalComponents(nn.Module):
    """The projection of an image onto the affine subspace that the mean and the principal components span.

    mean: [channels, height, width]. directions: [components, channels × height × width], orthonormal.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)
        self.register_buffer("directions", None)

    def fit(self, images: Float[Tensor, "images channels height width"]) -> None:
        """Fit the mean and one component per `IMAGES_PER_COMPONENT` images, at most `COMPONENTS`."""
        self.mean = images.mean(0)
        centered = (images - self.mean).flatten(1)
        count = min(COMPONENTS, len(images) // IMAGES_PER_COMPONENT)
        # The Gram matrix has one row per image; the covariance matrix would have one row per pixel and channel.
        values, vectors = leading_eigenvectors(centered @ centered.T, count)
        lengths = values.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        self.directions = (vectors / lengths).float().T @ centered

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the projections of the images, which are their nearest points in the subspace."""
        if not len(self.directions):  # OpenVINO has no product with an empty matrix
            return self.mean.expand_as(images)
        centered = (images - self.mean).flatten(1)
        return self.mean + (centered @ self.directions.T @ self.directions).reshape(images.shape)


def leading_eigenvectors(
    matrix: Float[Tensor, "size size"], count: int
) -> tuple[Float[Tensor, " count"], Float[Tensor, "size count"]]:
    """Return the largest eigenvalues of a symmetric matrix, ascending, and their eigenvectors, in double precision."""
    values, vectors = torch.linalg.eigh(matrix.double())
    first = len(values) - count
    return values[first:], vectors[:, first:]
