"""Processing of a batch in parts that bound the memory, except in an exported graph, whose batch size is free."""

from collections.abc import Sequence

import torch
from torch import Tensor


def in_parts(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return parts of at most `size` along the first axis; in an exported or compiled graph, the whole tensor."""
    return (tensor,) if torch.compiler.is_compiling() else torch.split(tensor, size)


def empty_like(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an empty tensor for maps of another shape, with the same type, device and order of axes in memory."""
    order = torch.channels_last if maps.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=maps.dtype, device=maps.device, memory_format=order)


def concatenated(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return the parts of several batches as one tensor; None unless all batches have it."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present and len(present) == len(parts) else None
