"""Base class of the networks whose features are used, and the names of their layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

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


class Window(NamedTuple):
    """Kernel and stride of a convolution or pooling, in positions of its input, both down and across."""

    kernel: int
    stride: int

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.MaxPool2d) -> "Window":
        """Return the window of a layer with a square kernel and without dilation.

        Raises:
            ValueError: the layer has another kernel, stride or dilation.
        """
        sizes = [value if isinstance(value, tuple) else (value, value) for value in (layer.kernel_size, layer.stride)]
        if any(down != across for down, across in sizes) or layer.dilation not in (1, (1, 1)):
            raise ValueError(f"{layer} has no square window")
        return cls(int(sizes[0][0]), int(sizes[1][0]))


class Step(NamedTuple):
    """A part of a chain of layers: each position of its output depends only on positions of its input around it.

    compute: from maps to maps. windows: of the layers in order; of parallel branches, the one with the largest windows.
    end: the point of the network after this step, if it has a name.
    """

    compute: Callable[[Tensor], Tensor]
    windows: tuple[Window, ...]
    end: HookPoint | None = None


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

    def chain(self) -> Sequence[Step]:
        """Return the layers as a chain of steps; empty if the network is none, or depends on the image as a whole."""
        return ()

    def features(self, images: Tensor, hook: Hook = identity_hook) -> Iterator[tuple[Tap, Tensor]]:
        """Yield the feature map of each tap of standardized images, the finest first.

        hook: called after the stem, if the network has one, and at each tap.
        """
        maps = images
        for step in self.chain():
            maps = step.compute(maps)
            if step.end is not None:
                maps = hook(step.end, maps)
                if step.end != "stem":
                    yield step.end, maps

    def module_name(self, name: str) -> str:
        """Return the name in this module of a tensor of the weights file."""
        return name

    def renamed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a weights file, converted to this module's names."""
        return {self.module_name(name): tensor for name, tensor in weights.items()}
