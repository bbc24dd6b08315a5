"""MeTAL's question asked of features: is this what good images show, and what they show here?

A frozen network trained on ImageNet describes each place of an image. Three codebooks say how far a description lies
from the typical ones, by fine, by all, and by deep features; a normal law at each place says how far it lies from
what is usual there; and on demand a blind transformer, how far from what the places around it let expect. Held-out good
images give each its unit (see `density.NormalizedLogDistance`), so that their mean can be taken. What is usual at a place has its
full say only as far as it depends on the place: little on objects that turn. No bank is searched.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from metalad.data.corruptions import perturbed
from metalad.detectors.base import DetectorConfig, FittedDetector, Scoring
from metalad.detectors.density.codebook import Codebook, sampled_positions
from metalad.detectors.density.context import POOLED, REACH, ContextPrediction
from metalad.detectors.density.gaussian import PositionalGaussian, variance_explained_by_position
from metalad.detectors.density.log_distance import NormalizedLogDistance, as_map
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone, neighbourhoods
from metalad.nn.networks import Tap, channels_of
from metalad.nn.photometric import PhotometricNormalization
from metalad.nn.pixels import Pixels, batches, to_batch
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import setting

TAPS: tuple[Tap, ...] = ("s4", "s8", "s16", "s32")
BATCH_SIZE = 16
LEAST_SIDE = 8 * ((2 * REACH + 1) * POOLED + 1)
"""Pixels of one pooled place more than are hidden at once: each has one to be foretold from."""
MAX_IMAGES = 1024
"""Images whose features are held at once, copies among them: .7 gigabytes at 256×256, thrice for a moment."""


@dataclass(frozen=True, kw_only=True)
class MetalFeaturesConfig(DetectorConfig):
    """Settings of MeTAL on features."""

    image_size: tuple[int, int] = setting((256, 256), "height and width that images are resized to, in pixels")
    smoothing_sigma: float = setting(6.0, "Gaussian filter over the anomaly map, in pixels of that size; 0 = none")
    guide: Literal["image", "none"] = setting(
        "image", "what the calibrated map's outlines follow: image, its edges (guided filter), or none"
    )
    backbone: str = setting("lite0", "network that gives the features; but for lite0-2, name its weights too")
    weights: str | None = setting(None, "weights file of the backbone; none: those that are installed")
    codebook_size: int = setting(1024, "typical features in each codebook")
    copies: int = setting(1, "copies of each good image with light, position and focus changed a little")
    photometric_normalization: bool = setting(True, "bring every image to the good images' usual brightness")
    context_steps: int = setting(
        0, "steps in which a blind transformer learns to foretell a place from others; 0: without it"
    )

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if self.codebook_size < 1 or self.copies < 0 or self.context_steps < 0:
            raise ConfigError("words must be at least 1, copies and steps at least 0")
        if self.context_steps and max(self.image_size) < LEAST_SIDE:
            height, width = self.image_size
            raise ConfigError(
                f"image_size {height}x{width} leaves a place nothing to be foretold from; take at least "
                f"{LEAST_SIDE} for one side, or steps=0"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Places of stride 8, down and across."""
        height, width = self.image_size
        return -(-height // 8), -(-width // 8)


class Description(NamedTuple):
    """What the backbone says of a batch, each channel standardised.

    fine: strides 4, 8 and 16 on the grid of stride 8. deep: stride 32.
    """

    fine: Float[Tensor, "batch channels down across"]
    deep: Float[Tensor, "batch deep_channels down_32 across_32"]

    def of(self, chosen: Tensor) -> "Description":
        """Return the description of the chosen images."""
        return Description(self.fine[chosen], self.deep[chosen])


class Densities(nn.Module):
    """Answers to how far a description lies from good images.

    even: fine features, each tap with the say of one channel. every: fine features, each channel with its own say.
    deep: stride 32. place: a normal law of stride 4 at each place. surroundings: fine features with even say, foretold
    from those around; of no steps, none.
    """

    stride_weights: Tensor

    def __init__(self, codebook_size: int, widths: Sequence[int], grid: tuple[int, int], context_steps: int) -> None:
        """Lay out the parts.

        widths: channels of strides 4, 8 and 16. grid: places of stride 8, down and across. steps: of descent.
        """
        super().__init__()
        self.context_steps = context_steps
        stride_weights = torch.cat([torch.full((width,), 1 / math.sqrt(width)) for width in widths])
        self.register_buffer("stride_weights", stride_weights[:, None, None], persistent=False)
        self.position_channels = widths[0]
        self.per_stride, self.per_channel, self.deep = (
            Codebook(codebook_size),
            Codebook(codebook_size),
            Codebook(codebook_size),
        )
        self.position = PositionalGaussian()
        self.context = ContextPrediction(sum(widths), grid) if context_steps else None

    @property
    def names(self) -> tuple[str, ...]:
        """Whose answers there are, in their order."""
        return ("per_stride", "per_channel", "deep", *(("context",) if self.context_steps else ()), "position")

    def fit(self, description: Description, seed: int) -> None:
        """Learn all from good images."""
        drawn, stride_weights = sampled_positions(description.fine, seed), self.stride_weights.flatten()
        self.per_stride.fit(drawn * stride_weights, seed)
        self.per_channel.fit(drawn, seed)
        self.deep.fit(sampled_positions(description.deep, seed), seed)
        self.position.fit(description.fine[:, : self.position_channels])
        if self.context_steps:
            self.context = ContextPrediction.fitted(description.fine, stride_weights, self.context_steps, seed)

    def forward(self, description: Description) -> list[Float[Tensor, "batch down across"]]:
        """Return the distances by `names`, all on the grid of stride 8."""
        fine = description.fine
        deep = F.interpolate(self.deep(description.deep)[:, None], fine.shape[-2:], mode="bilinear")[:, 0]
        predicted = [self.context(fine)] if self.context is not None else []
        return [
            self.per_stride(fine * self.stride_weights),
            self.per_channel(fine),
            deep,
            *predicted,
            self.position(fine[:, : self.position_channels]),
        ]


class MetalFeatures(FittedDetector):
    """A frozen backbone, densities of its features, and their common unit.

    say: the weight of each density. That of the law of places is the part of the features' variance that places
        explain, squared: it fades out where that is less than half. The others' is 1; but the evenly weighted codebook
        and the surroundings share one: both ask the same fine features, which must not drown the deep ones.
    """

    name = "metal_features"
    has_own_units = True
    config: MetalFeaturesConfig
    density_weights: Tensor

    def __init__(self, config: MetalFeaturesConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, TAPS)
        channels = channels_of(self.backbone.network)
        self.widths = [channels[tap] for tap in TAPS[:3]]
        self.fine_standardization, self.deep_standardization = (
            Standardization(sum(self.widths)),
            Standardization(channels["s32"]),
        )
        self.densities = self._new_densities()
        names = self.densities.names
        self.log_distance = NormalizedLogDistance(len(names))
        self.photometric = PhotometricNormalization(adjust_contrast=False)  # the network hardly minds contrast
        sharing = ("per_stride", "context") if config.context_steps else ()
        self.register_buffer("density_weights", torch.tensor([0.5 if name in sharing else 1.0 for name in names]))

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> None:
        """Learn the densities of one half of the images, their units on the other, and the densities of all.

        Raises:
            ConfigError: no weights for the backbone. DataError: fewer than two images.
        """
        if len(pixels) < 2:
            raise DataError(f"metal_features needs at least 2 good images to learn units from, got {len(pixels)}")
        self.backbone.load(self.config.weights)
        self.backbone.to(self.device)
        pixels = pixels[:: math.ceil(len(pixels) * (1 + self.config.copies) / MAX_IMAGES)]
        rng = np.random.default_rng(seed)
        with torch.no_grad():
            if self.config.photometric_normalization:
                self.photometric.fit(batches(pixels, self.device))
            descriptions = self._fit_standardization([self._maps(batch) for batch in self._with_copies(pixels, rng)])
            # An image's copies lie in its half: a density must not know what its unit is taken from.
            half = torch.arange(len(descriptions.fine)) % len(pixels) % 2
            distances = [
                self._distances_of_unseen(descriptions.of(half != side), descriptions.of(half == side), seed)
                for side in counted((0, 1), "units", "half")
            ]
            self.log_distance.fit([torch.cat(both) for both in zip(*distances, strict=True)])
            self.densities.fit(descriptions, seed)
            position_channels = descriptions.fine[: len(pixels), : self.densities.position_channels]
            self.density_weights[self.densities.names.index("position")] = (
                variance_explained_by_position(position_channels) ** 2
            )

    def describe(self, images: Float[Tensor, "batch 3 height width"]) -> Description:
        """Return what the backbone says of RGB images in [0, 1]."""
        fine, deep = self._maps(images)
        return Description(self.fine_standardization(fine), self.deep_standardization(deep))

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the surprise at each pixel, in tail units: 1 is what one good place in a hundred reaches."""
        return self._residuals_from(self.densities(self.describe(images)))

    def out_of_fold_residuals(self, training: Pixels) -> Residuals:
        """Return the evidence of training images, from densities of others."""
        with torch.no_grad():
            parts = [self.describe(batch) for batch in self._with_copies(training, np.random.default_rng(0))]
        descriptions = Description(*(torch.cat(kind) for kind in zip(*parts, strict=True)))

        def residuals_without(left_out: Bool[np.ndarray, " images"]) -> Residuals:
            others = torch.from_numpy(np.tile(~left_out, 1 + self.config.copies))
            images = torch.from_numpy(np.flatnonzero(left_out))  # not their copies, which come after all images
            with torch.no_grad():
                return self._residuals_from(
                    self._distances_of_unseen(descriptions.of(others), descriptions.of(images), seed=0)
                )

        return self._residuals_by_folds(training, residuals_without)

    def keeps_training_scores(self, scoring: Scoring) -> bool:  # noqa: ARG002 (both are one)
        """Return True: the densities, which alone know single images, were learnt without the image."""
        return True

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the surprise itself."""
        return residuals.values[:, 0]

    def _residuals_from(self, distances: Sequence[Float[Tensor, "batch down across"]]) -> Residuals:
        log_distance = self.log_distance(distances, self.density_weights)
        return Residuals(as_map(F.interpolate(log_distance[:, None], self.config.image_size, mode="bilinear")))

    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.backbone(self.photometric(images))
        grid = (maps[1].shape[-2], maps[1].shape[-1])
        return neighbourhoods(maps[:3], grid), neighbourhoods(maps[3:], (maps[3].shape[-2], maps[3].shape[-1]))

    def _with_copies(self, pixels: np.ndarray, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield the images in batches, then each once more a little changed, as often as is set."""
        parts = itertools.product(range(1 + self.config.copies), range(0, len(pixels), BATCH_SIZE))
        for copy, start in counted(list(parts), "features", "batch"):
            batch = pixels[start : start + BATCH_SIZE]
            yield to_batch(np.stack([perturbed(image, rng) for image in batch]) if copy else batch, self.device)

    def _fit_standardization(self, maps: Sequence[tuple[Tensor, Tensor]]) -> Description:
        """Learn each channel's unit, and return what these maps are in it."""
        self.fine_standardization.fit(fine for fine, _ in maps)
        self.deep_standardization.fit(deep for _, deep in maps)
        fine, deep = (torch.cat(list(parts)) for parts in zip(*maps, strict=True))
        return Description(self.fine_standardization(fine), self.deep_standardization(deep))

    def _new_densities(self) -> Densities:
        return Densities(self.config.codebook_size, self.widths, self.config.grid, self.config.context_steps)

    def _distances_of_unseen(self, seen: Description, unseen: Description, seed: int) -> list[Tensor]:
        """Return the distances of the second images by densities of the first."""
        densities = self._new_densities().to(self.device)
        densities.fit(seen, seed)
        index = torch.arange(len(unseen.fine))
        parts = [densities(unseen.of(part)) for part in torch.split(index, BATCH_SIZE)]
        return [torch.cat(kind) for kind in zip(*parts, strict=True)]
