"""Base class of the networks whose features are used, and the names of their layers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Tap = Literal["s4", "s8", "s16", "s32"]
"""Layer whose features are used: the last one with stride 4, 8, 16 or 32 relative to the image.

In a vision transformer, whose blocks have one stride: the end of each quarter of the blocks (see `TimmTransformer`).
"""
HookPoint = Literal["stem", "s4", "s8", "s16", "s32"]
Hook = Callable[[HookPoint, Tensor], Tensor]
"""Function that is called with the maps at a point of the network; the next layers process the maps it returns."""

TAPS: tuple[Tap, ...] = ("s4", "s8", "s16", "s32")
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def identity_hook(point: HookPoint, maps: Tensor) -> Tensor:  # noqa: ARG001 (signature of Hook)
    """Return the maps unchanged."""
    return maps


class Network(nn.Module):
    """Base class of the network families: the layers of a backbone, and the names of its weights.

    The map of a tap with stride N has ceil(height / N) rows and ceil(width / N) columns.
    """

    mean = IMAGENET_MEAN
    deviation = IMAGENET_DEVIATION

    def normalised(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Standardize RGB images in [0, 1] by the channel mean and deviation that the network was trained with."""
        mean, deviation = (images.new_tensor(values).reshape(3, 1, 1) for values in (self.mean, self.deviation))
        # channels_last makes depthwise convolutions on a CPU a third faster.
        return ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)

    def features(self, images: Tensor, hook: Hook = identity_hook) -> Iterator[tuple[Tap, Tensor]]:
        """Yield the feature map of each tap of standardized images, the finest first.

        hook: called after the stem, if the network has one, and at each tap.
        """
        raise NotImplementedError

    def module_name(self, name: str) -> str:
        """Return the name in this module of a tensor of the weights file."""
        return name

    def renamed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a weights file, converted to this module's names."""
        return {self.module_name(name): tensor for name, tensor in weights.items()}
