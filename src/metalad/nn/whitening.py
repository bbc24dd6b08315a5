"""Whitening matrices from covariances, by Cholesky factorization."""

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 2**20
"""Elements of the matrices that are factorized at once: all at once would need three times the memory."""


def whitening(
    covariance: Float[Tensor, "matrices channels channels"], ridge: float | Float[Tensor, ""]
) -> Float[Tensor, "matrices channels channels"]:
    """Return for each covariance C the matrix W with WᵀW = (C + ridge·I)⁻¹, so that ‖Wx‖ is a Mahalanobis distance.

    W is the inverse of the lower Cholesky factor of C + ridge·I: lower triangular, with a positive diagonal. It is
    computed in double precision and returned in single precision.

    A covariance of strongly correlated channels that was summed in single precision can stay indefinite after the ridge
    is added. Its eigenvalues are then raised to at least `ridge`.

    Args:
        covariance: symmetric matrices, in any floating-point precision; for one matrix, a batch of one.
        ridge: positive value that is added to all variances.
    """
    inverses = torch.empty_like(covariance, dtype=torch.float32)
    identity = torch.eye(covariance.shape[-1], dtype=torch.double, device=covariance.device)
    step = max(1, CHUNK // covariance.shape[-1] ** 2)
    for start in range(0, len(covariance), step):
        factor = _cholesky(covariance[start : start + step].double() + ridge * identity, ridge)
        inverses[start : start + step] = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    return inverses


def _cholesky(regularized: Tensor, min_eigenvalue: float | Tensor) -> Tensor:
    """Return the lower Cholesky factors; eigenvalues of indefinite matrices are clamped first."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(regularized)
    indefinite = failed > 0
    if indefinite.any():
        values, vectors = torch.linalg.eigh(regularized[indefinite])
        definite = vectors * values.clamp_min(min_eigenvalue)[:, None] @ vectors.mT
        factor[indefinite] = torch.linalg.cholesky(definite)
    return factor
