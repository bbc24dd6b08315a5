"""The logarithm of a sum of exponentials, from operations that do not overflow in any runtime of exported graphs."""

from jaxtyping import Float
from torch import Tensor


def log_sum_exp(values: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "..."]:
    """Return the bits of `torch.logsumexp`, whose operator in OpenVINO overflows: it does not subtract the maximum."""
    highest = values.amax(dim, keepdim=True)
    total: Tensor = (values - highest).exp().sum(dim).log() + highest.squeeze(dim)
    return total
