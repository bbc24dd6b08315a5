"""Networks of the optional package timm: convolutional ones, and plain vision transformers.

Vision transformers: those of timm's modules in `TRANSFORMERS`, such as DINOv2, DINOv3, CLIP and SigLIP.
"""

import contextlib
import difflib
import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from metalad.nn.network import TAPS, Hook, Network, Tap, identity_hook
from metalad.runtime.errors import ConfigError

TRANSFORMERS = ("vision_transformer", "eva", "deit")
"""Modules of timm whose networks are plain vision transformers that accept any image size."""


def timm_network(name: str, taps: Sequence[Tap], built_in: Sequence[str]) -> Network:
    """Return a network of timm with randomly initialized weights.

    built_in: the networks that need no timm, for error messages.

    Raises:
        ConfigError: timm is not installed or has no such network, or the network has no such tap.
    """
    try:
        import timm
    except ImportError:
        raise ConfigError(
            f"unknown backbone {name!r}; available: {', '.join(built_in)}, "
            "and the networks of the package timm after `pip install timm`"
        ) from None
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, [*built_in, *timm.list_models()])
        hint = f"did you mean {', '.join(similar)}?" if similar else f"available: {', '.join(built_in)}"
        raise ConfigError(f"unknown backbone {name!r}, in timm too; {hint}")
    try:
        timm.get_pretrained_cfg(name)
    except (RuntimeError, ValueError) as error:  # the part after the point
        raise ConfigError(
            f"unknown backbone {name!r}: {str(error).rstrip('.')}; omit what follows the point"
        ) from error
    is_transformer = timm.model_entrypoint(name).__module__.rpartition(".")[2] in TRANSFORMERS
    return TimmTransformer(timm, name, taps) if is_transformer else TimmNetwork(timm, name, taps)


class TimmNetwork(Network):
    """A network of timm; a tap is the last map with that stride."""

    def __init__(self, timm: ModuleType, name: str, taps: Sequence[Tap], **options: Any) -> None:
        """Create the layers.

        options: of `timm.create_model`.

        Raises:
            ConfigError: the network has no such tap.
        """
        super().__init__()
        self.model = timm.create_model(name, pretrained=False, num_classes=0, **options)
        pretrained = timm.get_pretrained_cfg(name)
        self.mean, self.deviation = tuple(pretrained.mean), tuple(pretrained.std)
        ends = self._ends()
        missing = [tap for tap in taps if tap not in ends]
        if missing:
            available = [tap for tap in TAPS if tap in ends]
            raise ConfigError(f"{name} has no tap {missing[0]}; available: {', '.join(available) or 'none'}")
        self.ends: dict[Tap, int] = dict(sorted(((tap, ends[tap]) for tap in taps), key=lambda end: end[1]))

    def _ends(self) -> dict[str, int]:
        """Return the index of the stage or block of each available tap."""
        return {f"s{stage['reduction']}": index for index, stage in enumerate(self.model.feature_info)}

    def features(self, images: Tensor, hook: Hook = identity_hook) -> Iterator[tuple[Tap, Tensor]]:
        """Yield the tapped stages' outputs, processed by `hook`; the next layers process the unchanged outputs."""
        indices = sorted(set(self.ends.values()))
        outputs = self.model.forward_intermediates(images, indices=indices, intermediates_only=True, stop_early=True)
        for tap, index in self.ends.items():
            yield tap, hook(tap, outputs[indices.index(index)])

    def module_name(self, name: str) -> str:
        """Add the name of the submodule that holds the timm network."""
        return f"model.{name}"


class TimmTransformer(TimmNetwork):
    """A plain vision transformer of timm, up to the deepest tapped block.

    Taps s4, s8, s16 and s32 are the patch tokens after 1/4, 2/4, 3/4 and all of the blocks, before the final norm. All
    of them have the grid of patches; each is resized to the grid of its stride (by the mean where that is coarser, else
    bilinearly), so that a method treats them as those of a convolutional network. Class and register tokens are
    omitted. An image whose sides are not multiples of the patch size is enlarged to the next multiples, and the
    position embedding is interpolated by timm.
    """

    def __init__(self, timm: ModuleType, name: str, taps: Sequence[Tap]) -> None:
        """Create the layers."""
        super().__init__(timm, name, taps, dynamic_img_size=True)
        self.model.prune_intermediate_layers(sorted(set(self.ends.values())), prune_norm=True, prune_head=True)

    def _ends(self) -> dict[str, int]:
        depth = len(self.model.blocks)
        return {tap: math.ceil(quarter * depth / len(TAPS)) - 1 for quarter, tap in enumerate(TAPS, 1)}

    def features(self, images: Tensor, hook: Hook = identity_hook) -> Iterator[tuple[Tap, Tensor]]:
        """Yield the tapped blocks' patch tokens, resized to the grid of the tap and processed by `hook`."""
        height, width = images.shape[-2:]
        down, across = self.model.patch_embed.patch_size
        multiple = (math.ceil(height / down) * down, math.ceil(width / across) * across)
        if multiple != (height, width):
            images = F.interpolate(images, multiple, mode="bilinear")
        for tap, maps in super().features(images):
            stride = int(tap[1:])
            yield tap, hook(tap, _resized(maps, (math.ceil(height / stride), math.ceil(width / stride))))

    def renamed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a weights file, converted from its publisher's names by timm.

        The position embedding is resized to that of the network. Weights with another patch size are not converted.
        """
        kernel = self.model.patch_embed.proj.weight.shape[-2:]
        if all(tensor.shape[-2:] == kernel for tensor in weights.values() if tensor.ndim == 4):  # a patch projection
            convert = vars(sys.modules[type(self.model).__module__])["checkpoint_filter_fn"]
            with contextlib.redirect_stdout(io.StringIO()):  # timm prints tensors that it leaves out
                weights = convert(dict(weights), self.model)
        return super().renamed(weights)


def _resized(
    maps: Float[Tensor, "batch channels height width"], grid: tuple[int, int]
) -> Float[Tensor, "batch channels down across"]:
    height, width = maps.shape[-2:]
    if (height, width) == grid:
        return maps
    if grid[0] <= height and grid[1] <= width:
        return F.adaptive_avg_pool2d(maps, grid)
    return F.interpolate(maps, grid, mode="bilinear")
