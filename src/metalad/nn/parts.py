"""Processing of a batch in parts that bound the memory, except in an exported graph, whose batch size is free."""

import torch
from torch import Tensor


def in_parts(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return parts of at most `size` along the first axis; in an exported or compiled graph, the whole tensor."""
    return (tensor,) if torch.compiler.is_compiling() else torch.split(tensor, size)
