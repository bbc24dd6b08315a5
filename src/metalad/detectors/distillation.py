"""Shared parts of the knowledge distillation methods: a student network is trained to predict a teacher's features.

The prediction error is large for features that do not occur in good images.
"""

import hashlib
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
"""Fraction of the images that `random_variants` mixes with noise."""
GRAY = 0.1
"""Fraction of the images that `random_variants` converts to gray."""
GRID_SIZES = (1, 2, 4, 8, 16, 32)
"""Grid cells along a side of the noise components of `random_variants`."""
CACHED_BYTES = 2**30
"""Limit of `CachedFeatures`: 1 GiB."""


class PartLearner(Learner):
    """Trains only some networks of a method; the loss may use the other networks (see `Learner.learner`).

    Other networks that the loss uses, such as a frozen network, are not part of the checkpoint or the model file.
    """

    def __init__(self, learning: nn.Module, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.learning = learning
        self._loss = loss

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the loss that was given."""
        return self._loss(images)


class CachedFeatures:
    """Feature maps of a frozen network, stored for each image, so that a further epoch does not compute them again.

    Each image is processed alone: its features do not depend on the batch, and a resumed training gives the same bits.
    Further images are not stored once the maps take `limit` bytes. The cache is no part of a checkpoint.
    """

    def __init__(
        self, network: Callable[[Tensor], Sequence[Float[Tensor, "batch _ _ _"]]], limit: int = CACHED_BYTES
    ) -> None:
        self.network, self.limit, self.bytes = network, limit, 0
        self._stored: dict[bytes, list[Tensor]] = {}

    def __call__(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the maps of a batch, without gradient."""
        keys = [hashlib.sha256(image.numpy()).digest() for image in images.detach().cpu().contiguous()]
        rows = [self._maps(key, images[index : index + 1]) for index, key in enumerate(keys)]
        return [torch.cat(maps) for maps in zip(*rows, strict=True)]

    def _maps(self, key: bytes, image: Tensor) -> list[Tensor]:
        if key in self._stored:
            return self._stored[key]
        with torch.no_grad():
            maps = [part.contiguous() for part in self.network(image)]
        size = sum(part.nbytes for part in maps)
        if self.bytes + size <= self.limit:
            self._stored[key] = maps
            self.bytes += size
        return maps


def fit_standardization(
    standardizations: Iterable[nn.Module],
    teacher: Callable[[Tensor], Sequence[Tensor]],
    pixels: Pixels,
    device: torch.device,
) -> None:
    """Fit each `Standardization` on the corresponding feature map of the teacher, on at most 128 images."""
    with torch.no_grad():
        features = [teacher(batch) for batch in batches(pixels, device, limit=128)]
        for standardization, maps in zip(standardizations, zip(*features, strict=True), strict=True):
            cast(Standardization, standardization).fit(maps)


def trained_backbone(name: str, taps: Sequence[Tap], weights: str | None, device: torch.device) -> Backbone:
    """Return a pretrained frozen network.

    Raises:
        ConfigError: as `Backbone` and `Backbone.load`.
    """
    backbone = Backbone(name, taps)
    backbone.load(weights)
    return backbone.to(device)


def load_in_order(module: nn.Module, path: str) -> None:
    """Load weights from a file into a module with tensors of the same shapes, in the order of the layers.

    The names of the layers in the file may differ from those in the module.

    Raises:
        ConfigError: the file cannot be read, or its tensors have other shapes.
    """
    stored, own = _by_layer(read_weights(Path(path))), _by_layer(module.state_dict())
    if [tensor.shape for tensor in stored] != [tensor.shape for tensor in own]:
        shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in own if tensor.ndim > 1)
        raise ConfigError(f"{path}: not the weights of this teacher, whose convolutions are {shapes}")
    for target, source in zip(own, stored, strict=True):
        target.copy_(source)


def _by_layer(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Sort by the numbers in the names, with weights before biases; the order in the file is arbitrary."""
    names = sorted(
        tensors, key=lambda name: ([int(number) for number in re.findall(r"\d+", name)], tensors[name].ndim < 2)
    )
    return [tensors[name] for name in names]


def random_variants(
    images: Float[Tensor, "batch 3 height width"],
    size: tuple[int, int],
    *,
    copies: int = 1,
    zoom: tuple[float, float] = (0.5, 2.0),
) -> Float[Tensor, "more 3 down across"]:
    """Return strongly augmented crops of images, as training data of a teacher if ImageNet is not available.

    A crop is randomly rotated, mirrored, scaled and recolored; half of the crops are mixed with multi-scale colored
    noise. The global random generator of torch is used.

    Args:
        images: RGB in [0, 1].
        size: height and width of the crops, in pixels.
        copies: crops per image.
        zoom: minimum and maximum number of image pixels per crop pixel, along a side.
    """
    images = images.repeat_interleave(copies, 0)
    return _mix_with_noise(_recolor(_random_crop(images, size, zoom))).clamp(0, 1)


def _random_crop(images: Tensor, size: tuple[int, int], zoom: tuple[float, float]) -> Tensor:
    count, (height, width), (down, across) = len(images), images.shape[-2:], size
    low, high = map(math.log, zoom)
    length = (low + (high - low) * torch.rand(count, device=images.device)).exp()
    angle = 2 * math.pi * torch.rand(count, device=images.device)
    mirror_sign = torch.where(torch.rand(count, device=images.device) < 0.5, -1.0, 1.0)
    center = 2 * torch.rand(2, count, device=images.device) - 1
    cosine, sine = length * angle.cos(), length * angle.sin()
    matrix = torch.stack(
        [
            torch.stack([mirror_sign * cosine * across / width, -sine * down / width, center[0]], 1),
            torch.stack([mirror_sign * sine * across / height, cosine * down / height, center[1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [count, 3, down, across], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recolor(images: Tensor) -> Tensor:
    """Multiply the colors by a random matrix near the identity, shift them, and convert some images to gray."""
    count, device = len(images), images.device
    matrix = torch.eye(3, device=device) + 0.3 * torch.randn(count, 3, 3, device=device)
    gray = torch.rand(count, 1, 1, device=device) < GRAY
    matrix = torch.where(gray, matrix.mean(1, keepdim=True).expand(-1, 3, -1), matrix)
    shift = 0.2 * torch.randn(count, 3, 1, 1, device=device)
    mean = images.mean((2, 3), keepdim=True)
    return torch.einsum("nij,njhw->nihw", matrix, images - mean) + mean + shift


def _mix_with_noise(images: Tensor) -> Tensor:
    count, _, height, width = images.shape
    noise = _noise(count, 3, height, width, images.device)
    mask = (4 * _noise(count, 1, height, width, images.device)).sigmoid()
    selected = torch.rand(count, 1, 1, 1, device=images.device) < MIXED
    return torch.where(selected, mask * images + (1 - mask) * (0.5 + 0.25 * noise), images)


def _noise(count: int, channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return noise with a variance of about 1; each image has random weights of the scales."""
    weights = torch.rand(count, len(GRID_SIZES), device=device).square()
    weights = weights / weights.square().sum(1, keepdim=True).sqrt()
    total = torch.zeros(count, channels, height, width, device=device)
    for index, cells in enumerate(GRID_SIZES):
        coarse = torch.randn(count, channels, cells + 1, cells + 1, device=device)
        fine = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
        total += weights[:, index, None, None, None] * fine
    return total
