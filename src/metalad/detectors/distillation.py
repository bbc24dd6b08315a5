"""What methods share in which one network learns to say what another says, and betrays what is new by failing to."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.nn.backbones import Backbone, read_weights
from metalad.nn.networks import Tap
from metalad.nn.pixels import Pixels, batches
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError
from metalad.training.loop import Learner

MIXED = 0.5
"""The part of the images whose content `varied` mixes with noise."""
GREY = 0.1
OCTAVES = (1, 2, 4, 8, 16, 32)
"""Cells of `varied`'s noise along a side."""


class Part(Learner):
    """A part of a method that learns alone, by a loss that may see the rest (see `Learner.learner`).

    What else the loss needs, such as a frozen network, it brings with it: neither checkpoint nor model file holds it.
    """

    def __init__(self, learning: nn.Module, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.learning = learning
        self._loss = loss

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the part's loss."""
        return self._loss(images)


def fit_standardization(
    units: Iterable[nn.Module], teacher: Callable[[Tensor], Sequence[Tensor]], pixels: Pixels, device: torch.device
) -> None:
    """Have each `Standardization` of `units` learn the map that the teacher gives at its place, of 128 images at most."""
    with torch.no_grad():
        said = [teacher(batch) for batch in batches(pixels, device, limit=128)]
        for unit, maps in zip(units, zip(*said, strict=True), strict=True):
            cast(Standardization, unit).fit(maps)


def trained_backbone(name: str, taps: Sequence[Tap], weights: str | None, device: torch.device) -> Backbone:
    """Return a frozen network with its weights.

    Raises:
        ConfigError: as `Backbone` and its `load` do.
    """
    backbone = Backbone(name, taps)
    backbone.load(weights)
    return backbone.to(device)


def fill_in_order(module: nn.Module, path: str) -> None:
    """Read a file's weights into a module with tensors of the same shapes, layer by layer, whatever the layers' names.

    Raises:
        ConfigError: the file cannot be read, or its tensors have other shapes.
    """
    found, own = _by_layer(read_weights(Path(path))), _by_layer(module.state_dict())
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in own]:
        shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in own if tensor.ndim > 1)
        raise ConfigError(f"{path}: not the weights of this teacher, whose convolutions are {shapes}")
    for mine, theirs in zip(own, found, strict=True):
        mine.copy_(theirs)


def _by_layer(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Sort by the numbers in the names, in a layer weights first; a file's own order says nothing."""
    names = sorted(
        tensors, key=lambda name: ([int(number) for number in re.findall(r"\d+", name)], tensors[name].ndim < 2)
    )
    return [tensors[name] for name in names]


def varied(
    images: Float[Tensor, "batch 3 height width"],
    size: tuple[int, int],
    *,
    copies: int = 1,
    zoom: tuple[float, float] = (0.5, 2.0),
) -> Float[Tensor, "more 3 down across"]:
    """Return images of many kinds, made of a few: what a teacher learns from where there is no ImageNet.

    Each is a piece of an image, turned, mirrored, enlarged or reduced, in other colours; half of them are mixed with
    coloured noise of all scales. Chance is torch's own.

    Args:
        images: RGB in [0, 1].
        size: height and width of the pieces, in pixels.
        copies: pieces an image.
        zoom: least and greatest length of an image, in pixels, that a pixel of a piece shows.
    """
    images = images.repeat_interleave(copies, 0)
    return _mixed(_recoloured(_piece(images, size, zoom))).clamp(0, 1)


def _piece(images: Tensor, size: tuple[int, int], zoom: tuple[float, float]) -> Tensor:
    count, (height, width), (down, across) = len(images), images.shape[-2:], size
    low, high = map(math.log, zoom)
    length = (low + (high - low) * torch.rand(count, device=images.device)).exp()
    angle = 2 * math.pi * torch.rand(count, device=images.device)
    mirrored = torch.where(torch.rand(count, device=images.device) < 0.5, -1.0, 1.0)
    centre = 2 * torch.rand(2, count, device=images.device) - 1
    cosine, sine = length * angle.cos(), length * angle.sin()
    matrix = torch.stack(
        [
            torch.stack([mirrored * cosine * across / width, -sine * down / width, centre[0]], 1),
            torch.stack([mirrored * sine * across / height, cosine * down / height, centre[1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [count, 3, down, across], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recoloured(images: Tensor) -> Tensor:
    """Mix the colours by a random matrix near the identity, shift them, and make some grey."""
    count, device = len(images), images.device
    matrix = torch.eye(3, device=device) + 0.3 * torch.randn(count, 3, 3, device=device)
    grey = torch.rand(count, 1, 1, device=device) < GREY
    matrix = torch.where(grey, matrix.mean(1, keepdim=True).expand(-1, 3, -1), matrix)
    shift = 0.2 * torch.randn(count, 3, 1, 1, device=device)
    mean = images.mean((2, 3), keepdim=True)
    return torch.einsum("nij,njhw->nihw", matrix, images - mean) + mean + shift


def _mixed(images: Tensor) -> Tensor:
    count, _, height, width = images.shape
    noise = _noise(count, 3, height, width, images.device)
    mask = (4 * _noise(count, 1, height, width, images.device)).sigmoid()
    chosen = torch.rand(count, 1, 1, 1, device=images.device) < MIXED
    return torch.where(chosen, mask * images + (1 - mask) * (0.5 + 0.25 * noise), images)


def _noise(count: int, channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return noise of about unit variance, each map with its own mixture of scales."""
    weights = torch.rand(count, len(OCTAVES), device=device).square()
    weights = weights / weights.square().sum(1, keepdim=True).sqrt()
    total = torch.zeros(count, channels, height, width, device=device)
    for index, cells in enumerate(OCTAVES):
        rough = torch.randn(count, channels, cells + 1, cells + 1, device=device)
        fine = F.interpolate(rough, (height, width), mode="bilinear", align_corners=True)
        total += weights[:, index, None, None, None] * fine
    return total
