"""Architectures of networks trained on ImageNet, up to the layers whose features are used.

Implemented here: EfficientNet-Lite (Liu 2020, from Tan & Le 2019, arXiv:1905.11946, without squeeze-and-excitation and
with ReLU6), ResNet (He et al. 2015, arXiv:1512.03385), Wide ResNet (Zagoruyko & Komodakis 2016, arXiv:1605.07146) and
VGG (Simonyan & Zisserman 2014, arXiv:1409.1556). Any other network is taken from the package timm, if it is installed
(see `metalad.nn.timm_networks`). This module defines layers only; `metalad.nn.backbones` loads the weights.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.nn.network import IMAGENET_DEVIATION as IMAGENET_DEVIATION
from metalad.nn.network import IMAGENET_MEAN as IMAGENET_MEAN
from metalad.nn.network import HookPoint as HookPoint
from metalad.nn.network import Network, Step, Window
from metalad.nn.network import Tap as Tap
from metalad.nn.timm_networks import timm_network
from metalad.runtime.errors import ConfigError

KERNELS, STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
TAPPED_STAGES: dict[Tap, int] = {"s4": 1, "s8": 2, "s16": 4, "s32": 6}
HEAD_CHANNELS, CLASSES = 1280, 1000
EXPANSION = 6
LITE_MEAN, LITE_DEVIATION = (127 / 255,) * 3, (128 / 255,) * 3


class LiteShape(NamedTuple):
    """Channels and number of blocks of the seven stages, and the name of the weights file in the package."""

    channels: tuple[int, ...]
    repeats: tuple[int, ...]
    file: str


LITE = {
    "lite0": LiteShape((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), "efficientnet-lite0-57934424.pth"),
    "lite1": LiteShape((16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1), "efficientnet-lite1-77cc7160.pth"),
    "lite2": LiteShape((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1), "efficientnet-lite2-9656183e.pth"),
}


class Convolution(nn.Conv2d):
    """A convolution whose maps may be normalized in the same step."""

    def forward(self, input: Tensor, norm: nn.BatchNorm2d | None = None) -> Tensor:
        """Return the maps, normalized if a norm is given; the convolution then has no bias.

        With fixed statistics a norm is linear, and the convolution's weights are scaled instead of its maps. There are
        far fewer weights, so that they can be scaled at each call: a CPU needs 40 % less time for EfficientNet-Lite.
        """
        if norm is None or norm.training or torch.compiler.is_compiling():
            # Export and compilation scale the weights themselves, once.
            maps: Tensor = self._conv_forward(input, self.weight, self.bias)
            return maps if norm is None else norm(maps)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight, bias = self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
        normalized: Tensor = self._conv_forward(input, weight, bias)
        return normalized


class SameConv(Convolution):
    """A convolution with TensorFlow's "SAME" padding: odd padding is larger by one at the bottom or right."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return maps of ceil(size / stride) values per side."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in input.shape[-2:]]
        if all(pad % 2 == 0 for pad in pads):
            return F.conv2d(input, weight, bias, stride, (pads[0] // 2, pads[1] // 2), 1, self.groups)
        down, across = pads
        input = F.pad(input, (across // 2, across - across // 2, down // 2, down - down // 2))
        return F.conv2d(input, weight, bias, stride, 0, 1, self.groups)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _relu6(maps: Tensor) -> Tensor:
    """Apply ReLU6, in place except in an exported graph: allocating memory takes longer than the computation."""
    return F.relu6(maps, inplace=not torch.compiler.is_compiling())


class LiteBlock(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, and linear projection."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self.expand_conv, self.bn0 = SameConv(inputs, hidden, 1, bias=False), _batch_norm(hidden)
        self.depthwise_conv = SameConv(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self.bn1 = _batch_norm(hidden)
        self.project_conv, self.bn2 = SameConv(hidden, outputs, 1, bias=False), _batch_norm(outputs)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out down across"]:
        """Return the block's maps."""
        hidden = _relu6(self.expand_conv(maps, self.bn0)) if self.expands else maps
        hidden = _relu6(self.depthwise_conv(hidden, self.bn1))
        projected: Tensor = self.project_conv(hidden, self.bn2)
        return projected + maps if self.adds else projected

    def windows(self) -> tuple[Window, ...]:
        """Return the windows of the layers of more than one position."""
        return (Window.of(self.depthwise_conv),)


class EfficientNetLite(Network):
    """EfficientNet-Lite up to the deepest tap, or, with empty `taps`, the whole classifier."""

    mean, deviation = LITE_MEAN, LITE_DEVIATION

    def __init__(self, shape: LiteShape, taps: Sequence[Tap] = ()) -> None:
        super().__init__()
        self.ends: dict[int, Tap] = {list(accumulate(shape.repeats))[TAPPED_STAGES[tap]] - 1: tap for tap in taps}
        self.conv_stem, self.bn0 = SameConv(3, 32, 3, 2, bias=False), _batch_norm(32)
        blocks = list(self._blocks(shape))
        self.blocks = nn.ModuleList(blocks[: max(self.ends) + 1] if taps else blocks)
        if not taps:
            self.conv_head = SameConv(shape.channels[-1], HEAD_CHANNELS, 1, bias=False)
            self.bn1, self.fc = _batch_norm(HEAD_CHANNELS), nn.Linear(HEAD_CHANNELS, CLASSES)

    @staticmethod
    def _blocks(shape: LiteShape) -> Iterator[LiteBlock]:
        inputs = 32
        for stage, (outputs, repeats) in enumerate(zip(shape.channels, shape.repeats, strict=True)):
            for index in range(repeats):
                stride = STRIDES[stage] if index == 0 else 1
                yield LiteBlock(inputs, outputs, KERNELS[stage], stride, EXPANSION if stage else 1)
                inputs = outputs

    def chain(self) -> Sequence[Step]:
        """Return the stem and the blocks."""
        blocks = [cast(LiteBlock, block) for block in self.blocks]
        return [
            Step(self._stem, (Window.of(self.conv_stem),), "stem"),
            *(Step(block, block.windows(), self.ends.get(index)) for index, block in enumerate(blocks)),
        ]

    def _stem(self, images: Tensor) -> Tensor:
        return _relu6(self.conv_stem(images, self.bn0))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of standardized images; only for a network created without taps."""
        maps = self._stem(images)
        for block in self.blocks:
            maps = block(maps)
        logits: Tensor = self.fc(_relu6(self.conv_head(maps, self.bn1)).mean((2, 3)))
        return logits

    def module_name(self, name: str) -> str:
        """Remove the leading underscores of the names in the weights packages."""
        return name.removeprefix("_").replace("._", ".")


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, or a bottleneck of three, with a shortcut; names as in torchvision's files."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        convolutions = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]  # kernel, stride
        widths = [inputs, *[hidden] * (len(convolutions) - 1), outputs]
        self.layers = len(convolutions)
        for index, (kernel, step) in enumerate(convolutions):
            conv = Convolution(widths[index], widths[index + 1], kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{index + 1}", conv)
            self.add_module(f"bn{index + 1}", nn.BatchNorm2d(widths[index + 1]))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            shortcut = Convolution(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out down across"]:
        """Return the block's maps."""
        hidden = maps
        for index in range(1, self.layers + 1):
            hidden = self.get_submodule(f"conv{index}")(hidden, self.get_submodule(f"bn{index}"))
            hidden = F.relu(hidden) if index < self.layers else hidden
        return F.relu(hidden + self._shortcut(maps))

    def _shortcut(self, maps: Tensor) -> Tensor:
        if self.downsample is None:
            return maps
        conv, norm = self.downsample
        shortcut: Tensor = conv(maps, norm)
        return shortcut

    def windows(self) -> tuple[Window, ...]:
        """Return the windows of the convolutions beside the shortcut."""
        convolutions = (self.get_submodule(f"conv{index}") for index in range(1, self.layers + 1))
        return tuple(Window.of(cast(nn.Conv2d, conv)) for conv in convolutions)


class ResNet(Network):
    """ResNet-18, or Wide ResNet-50 with bottlenecks of twice the width, up to the deepest tap."""

    def __init__(self, taps: Sequence[Tap], *, wide: bool) -> None:
        super().__init__()
        self.wanted = set(taps)
        self.conv1, self.bn1 = Convolution(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.pooling = nn.MaxPool2d(3, 2, 1)
        inputs, self.depth = 64, 0
        for stage, (tap, repeats) in enumerate(zip(TAPPED_STAGES, (3, 4, 6, 3) if wide else (2,) * 4, strict=True)):
            outputs, hidden = (256 << stage, 128 << stage) if wide else (64 << stage, 64 << stage)
            blocks = [
                ResidualBlock(outputs if i else inputs, hidden, outputs, 1 if i or not stage else 2, bottleneck=wide)
                for i in range(repeats)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs, self.depth = outputs, stage + 1
            if self.wanted <= set(list(TAPPED_STAGES)[: stage + 1]) and tap in self.wanted:
                break

    def chain(self) -> Sequence[Step]:
        """Return the stem and the blocks."""
        steps = [Step(self._stem, (Window.of(self.conv1), Window.of(self.pooling)), "stem")]
        for stage, tap in zip(range(1, self.depth + 1), TAPPED_STAGES, strict=False):
            blocks = [cast(ResidualBlock, block) for block in self.get_submodule(f"layer{stage}").children()]
            ends = [None] * (len(blocks) - 1) + [tap if tap in self.wanted else None]
            steps += [Step(block, block.windows(), end) for block, end in zip(blocks, ends, strict=True)]
        return steps

    def _stem(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.pooling(F.relu(self.conv1(images, self.bn1)))
        return pooled


class Vgg(Network):
    """VGG-16 without batch norm; a tap is the last convolution before the next pooling."""

    PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)

    def __init__(self, taps: Sequence[Tap]) -> None:
        super().__init__()
        if "s32" in taps:
            raise ConfigError("vgg16 has no tap s32; use s4, s8 or s16")
        layers: list[nn.Module] = []
        inputs, stride = 3, 1
        self.ends: dict[int, Tap] = {}
        for width in self.PLAN:
            if width:
                layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.ReLU()]
                inputs = width
                continue
            self._end(len(layers) - 1, stride, taps)
            layers.append(nn.MaxPool2d(2))
            stride *= 2
        self._end(len(layers) - 1, stride, taps)
        self.add_module("features_", nn.Sequential(*layers[: max(self.ends) + 1]))

    def _end(self, layer: int, stride: int, taps: Sequence[Tap]) -> None:
        for tap in taps:
            if tap == f"s{stride}":
                self.ends[layer] = tap

    def chain(self) -> Sequence[Step]:
        """Return the layers."""
        layers = self.get_submodule("features_").children()
        return [
            Step(layer, () if isinstance(layer, nn.ReLU) else (Window.of(layer),), self.ends.get(index))
            for index, layer in enumerate(cast(Iterator[nn.Conv2d | nn.MaxPool2d | nn.ReLU], layers))
        ]

    def module_name(self, name: str) -> str:
        """Rename torchvision's `features`, which is a method of this class."""
        return name.replace("features.", "features_.", 1)


BUILT_IN: Mapping[str, Callable[[Sequence[Tap]], Network]] = {
    **{name: partial(EfficientNetLite, shape) for name, shape in LITE.items()},
    "resnet18": partial(ResNet, wide=False),
    "wide_resnet50_2": partial(ResNet, wide=True),
    "vgg16": Vgg,
}


def create_network(name: str, taps: Sequence[Tap]) -> Network:
    """Return a network up to the deepest tap, with randomly initialized weights.

    Raises:
        ConfigError: unknown network, or it has no such tap.
    """
    return BUILT_IN[name](taps) if name in BUILT_IN else timm_network(name, taps, tuple(BUILT_IN))


def channels_of(network: Network) -> dict[HookPoint, int]:
    """Return the number of channels at each hook point, measured with a black image."""
    channels: dict[HookPoint, int] = {}

    def record(point: HookPoint, maps: Tensor) -> Tensor:
        channels[point] = maps.shape[1]
        return maps

    training = network.training
    network.eval()
    with torch.no_grad():
        list(network.features(torch.zeros(1, 3, 32, 32), record))
    network.train(training)
    return channels
