"""Whitening."""

import torch
from jaxtyping import Float
from torch import Tensor


def whitening(
    covariance: Float[Tensor, "places channels channels"], ridge: float | Float[Tensor, ""]
) -> Float[Tensor, "places channels channels"]:
    """Return W with WᵀW the inverse of each covariance, to whose variances `ridge` is added; in single precision.

    Inverts the Cholesky factors in double precision, a few at a time: all at once would take thrice the memory.
    """
    found = torch.empty_like(covariance, dtype=torch.float32)
    identity = torch.eye(covariance.shape[-1], dtype=torch.double, device=covariance.device)
    for start in range(0, len(covariance), 64):
        factor = torch.linalg.cholesky(covariance[start : start + 64].double() + ridge * identity)
        inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        found[start : start + 64] = inverse
    return found
