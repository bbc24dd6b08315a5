"""A linear subspace of features of good images: the residual of a feature is its distance from the subspace."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Subspace(nn.Module):
    """The principal subspace that contains a fraction of the variance of features.

    mean: [channels]. complement: [channels, rest], an orthonormal basis of the directions orthogonal to the subspace.
    """

    mean: Tensor
    complement: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)
        self.register_buffer("complement", None)

    @property
    def dimensions(self) -> int:
        """Number of dimensions of the subspace."""
        return self.complement.shape[0] - self.complement.shape[1]

    def fit(self, batches: Iterable[Float[Tensor, "_ channels"]], variance: float) -> None:
        """Fit the subspace with the fewest dimensions that contains at least this fraction of the variance.

        Reads the batches once and holds one of them; sums are in double precision. Vectors without variance give a
        subspace of dimension 0.
        """
        count, origin, total, products = 0, torch.empty(0), torch.empty(0), torch.empty(0)
        for vectors in batches:
            if not count:  # subtracted before summation: sums of squares of large values would lose digits
                origin = vectors.mean(0)
                total = torch.zeros_like(origin, dtype=torch.double)
                products = total.new_zeros(len(total), len(total))
            centred = (vectors - origin).double()
            count += len(vectors)
            total += centred.sum(0)
            products.addmm_(centred.T, centred)
        offset = total / count
        covariance = products / count - torch.outer(offset, offset)
        values, directions = torch.linalg.eigh(covariance)  # ascending
        # Directions are left out of the subspace while their variances together are at most the rest of all variance.
        left_out = values.clamp_min(0).cumsum(0) <= (1 - variance) * values.sum() * (1 + 1e-9)
        self.mean = (origin + offset).float()
        self.complement = directions[:, : int(left_out.sum())].float().contiguous()

    def forward(self, vectors: Float[Tensor, "vectors channels"]) -> Float[Tensor, " vectors"]:
        """Return the Euclidean norm of each vector's residual after projection on the subspace."""
        # The coordinates in the complement, not the difference from the projection, which loses digits near 0.
        lengths: Tensor = torch.linalg.vector_norm((vectors - self.mean) @ self.complement, dim=1)
        return lengths
