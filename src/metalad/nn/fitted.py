"""Buffers that are fitted to data: None until then, so that nothing can be computed with an unfitted module."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def load_fitted(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a state dict into a module whose fitted buffers have shapes that depend on the data.

    Raises:
        RuntimeError: the names, or the shapes of parameters, are not those of the module.
    """
    for owner_name, owner in module.named_modules():
        for leaf in owner._buffers:
            stored = tensors.get(f"{owner_name}.{leaf}" if owner_name else leaf)
            if stored is not None:
                owner._buffers[leaf] = torch.empty_like(stored)
    module.load_state_dict(tensors)


def make_contiguous(module: nn.Module) -> None:
    """Lay the buffers out as a model file does; with another layout, matrix products differ in their last bits."""
    for owner in module.modules():
        for leaf, buffer in owner._buffers.items():
            owner._buffers[leaf] = None if buffer is None else buffer.contiguous()


def unfitted(module: nn.Module) -> list[str]:
    """Return the names of the buffers that are not fitted yet."""
    return [
        f"{owner_name}.{leaf}" if owner_name else leaf
        for owner_name, owner in module.named_modules()
        for leaf, buffer in owner._buffers.items()
        if buffer is None
    ]
