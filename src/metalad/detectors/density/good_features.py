"""The features that densities are fitted on: of good images and of altered copies of them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from metalad.data.corruptions import Rgb, perturbed, turned_in_other_light
from metalad.nn.parts import empty_like
from metalad.nn.pixels import to_batch
from metalad.nn.standardization import Standardization
from metalad.runtime.progress import counted

BATCH_SIZE = 16
TURNED_PIXELS = 64 * 256**2
"""Pixels of the turned copies together at most; the subspace is fitted on a sample of their positions."""
MIN_TURNED = 8
"""Turned copies at least, of large images, if there are as many."""

Alteration = Callable[[Rgb, np.random.Generator], Rgb]


class Features(NamedTuple):
    """Standardized features of a batch.

    fine: strides 4, 8 and 16 on the grid of stride 8. deep: stride 32.
    """

    fine: Float[Tensor, "batch channels down across"]
    deep: Float[Tensor, "batch deep_channels down_32 across_32"]

    def batches(self, images: Int[Tensor, " images"]) -> Iterator["Features"]:
        """Yield the features of the images in batches: a copy of all may need more memory than there is."""
        for index in torch.split(images, BATCH_SIZE):
            yield Features(self.fine[index], self.deep[index])


class GoodFeatures(NamedTuple):
    """Standardized features of good images and of their copies.

    features: of the images; then of a `perturbed` copy of each, as often as there are copies; then of the turned
    copies. images: number of images. copies: perturbed ones of each image. turned: the image of each copy that is
    `turned_in_other_light`.
    """

    features: Features
    images: int
    copies: int
    turned: Int[Tensor, " turned"]

    @property
    def with_perturbed(self) -> Int[Tensor, " images_and_copies"]:
        """The indices of all images and their perturbed copies."""
        return torch.arange((1 + self.copies) * self.images)

    def for_subspace(self, chosen: Int[Tensor, " chosen"]) -> list[Int[Tensor, " _"]]:
        """Return the indices of those of the chosen that are images, and of the turned copies of these."""
        images = chosen[chosen < self.images]
        turned = torch.nonzero(torch.isin(self.turned, images))[:, 0]
        return [images, len(self.with_perturbed) + turned]  # turned copies follow these


def good_features(
    pixels: UInt8[np.ndarray, "images height width 3"],
    copies: int,
    turns: bool,
    seed: int,
    maps_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    standardizations: tuple[Standardization, Standardization],
    device: torch.device,
) -> GoodFeatures:
    """Fit the standardization of fine and deep features, and return the features, which are held once.

    Args:
        pixels: of good images.
        copies: perturbed ones of each image.
        turns: whether there are turned copies.
        seed: of the alterations.
        maps_of: returns the fine and the deep features of a batch of RGB images in [0, 1].
        standardizations: of fine and deep features; fitted on images and perturbed copies.
        device: of the batches.
    """
    every = np.arange(len(pixels))
    most = max(MIN_TURNED, TURNED_PIXELS // (pixels.shape[1] * pixels.shape[2]))
    turned = np.sort(np.random.default_rng(seed).permutation(every)[:most]) if turns else every[:0]
    altered = [(None, every), *[(perturbed, every)] * copies, (turned_in_other_light, turned)]
    count = sum(len(indices) for _, indices in altered)
    maps, filled = None, 0
    for batch in _altered_batches(pixels, altered, seed, device):
        new = maps_of(batch)
        if maps is None:
            maps = Features(*(empty_like(kind, (count, *kind.shape[1:])) for kind in new))
        for kind, values in zip(maps, new, strict=True):
            kind[filled : filled + len(batch)] = values
        filled += len(batch)
    assert maps is not None
    for standardization, kind in zip(standardizations, maps, strict=True):
        standardization.fit(torch.split(kind[: (1 + copies) * len(pixels)], BATCH_SIZE))
        for part in torch.split(kind, BATCH_SIZE):
            part.copy_(standardization(part))
    return GoodFeatures(maps, len(pixels), copies, torch.from_numpy(turned))


def _altered_batches(
    pixels: np.ndarray,
    altered: Sequence[tuple[Alteration | None, Int[np.ndarray, " _"]]],
    seed: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield images in batches: for each alteration, the images at its indices, altered; None: as they are."""
    rng = np.random.default_rng(seed)
    parts = [
        (alter, indices[start : start + BATCH_SIZE])
        for alter, indices in altered
        for start in range(0, len(indices), BATCH_SIZE)
    ]

    def batch(alter: Alteration | None, indices: np.ndarray) -> np.ndarray:
        return pixels[indices] if alter is None else np.stack([alter(pixels[index], rng) for index in indices])

    # One thread alters the next batch, in order, while the backbone works on this one.
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(batch, *parts[0])
        for number in counted(range(len(parts)), "features", "batch"):
            images = following.result()
            if number + 1 < len(parts):
                following = ahead.submit(batch, *parts[number + 1])
            yield to_batch(images, device)
