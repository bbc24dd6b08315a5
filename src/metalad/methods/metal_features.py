"""MeTAL on features: distances of a pretrained network's features from those of good images.

A frozen network trained on ImageNet gives a feature vector at each position of an image. Two codebooks of fine features
(each stride with equal weight, or each channel) and one of deep features measure the distance from the nearest entry;
those of fine features are coresets, which keep rare features. A Gaussian at each position measures the distance from
what is usual there; optionally a blind transformer predicts a position's features from those around it. Distances of
held-out good images normalize each density (see `NormalizedLogDistance`), and their weighted mean is the map. The
weights depend on how much of the features' variance position explains: little on textures and objects that turn. The
two codebooks of fine features divide their entries by weight. Where good images have a large map value on average, a
part of that is subtracted (see `PositionalMean`). The image score is the map's maximum, to which the composition of the
whole image contributes (see `Composition`).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from metalad.data.corruptions import perturbed
from metalad.detectors.base import DetectorConfig, FittedDetector, Scoring
from metalad.detectors.density.codebook import MAX_POINTS, Codebook, Selection, sampled_positions
from metalad.detectors.density.composition import Composition, CompositionScore, joined_score, level
from metalad.detectors.density.context import POOLED, REACH, ContextPrediction
from metalad.detectors.density.gaussian import PositionalGaussian, variance_explained_by_position
from metalad.detectors.density.log_distance import NormalizedLogDistance, as_map
from metalad.detectors.density.positional_mean import PositionalMean
from metalad.detectors.out_of_fold import MAX_IMAGES as MAX_OUT_OF_FOLD
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone, neighbourhoods
from metalad.nn.networks import Tap, channels_of
from metalad.nn.parts import empty_like
from metalad.nn.photometric import PhotometricNormalization
from metalad.nn.pixels import Pixels, batches, subsampled, subsampled_indices, to_batch
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import auto_size, setting

TAPS: tuple[Tap, ...] = ("s4", "s8", "s16", "s32")
BATCH_SIZE = 16
MIN_CONTEXT_SIDE = 8 * ((2 * REACH + 1) * POOLED + 1)
"""Pixels of one pooled position more than are hidden at once, so that each can be predicted from another."""
MIN_SHARE = 0.1
"""Smallest share of the entries of both codebooks of fine features that either of them gets."""
DEEP_CODEBOOK_SIZE = 1024
"""Entries of the codebook of deep features at most. They are fitted by k-means: a coreset of deep features is worse."""
MAX_CORESET_POINTS = 120_000
"""Fine feature vectors that coresets are selected from at most: rare ones must be among them to become entries."""
MAX_PIXELS = 1024 * 256**2
"""Pixels of the images whose features are held at once, copies included: 0.8 gigabytes."""


@dataclass(frozen=True, kw_only=True)
class MetalFeaturesConfig(DetectorConfig):
    """Settings of MeTAL on features."""

    image_size: tuple[int, int] = auto_size(256, 32)
    smoothing_sigma: float = setting(6.0, "Gaussian filter over the anomaly map, in pixels of that size; 0 = none")
    guide: Literal["image", "none"] = setting(
        "image", "image: the calibrated map follows the edges of the image (guided filter); none: it does not"
    )
    backbone: str = setting("lite0", "network that gives the features; all but lite0, lite1, lite2 need weights")
    weights: str | None = setting(None, "weights file of the backbone; none: those that are installed")
    codebook_size: int = setting(5000, "entries of both codebooks of fine features together")
    selection: Selection = setting(
        "coreset", "entries of these codebooks: coreset, which keeps rare features, or k-means"
    )
    copies: int = setting(1, "copies of each good image with small random changes of light, position and focus")
    photometric_normalization: bool = setting(True, "scale every image to the mean brightness of the good images")
    positional_mean: bool = setting(
        True, "subtract a part of the mean distance of good images at each position, where it is above average"
    )
    composition: bool = setting(True, "count in the image score, too, how unusual the image is as a whole")
    context_steps: int = setting(0, "training steps of a blind transformer that predicts features; 0: without it")

    def __post_init__(self) -> None:
        """Check settings that depend on each other."""
        super().__post_init__()
        if self.codebook_size < 1 or self.copies < 0 or self.context_steps < 0:
            raise ConfigError("codebook_size must be at least 1, copies and context_steps at least 0")
        if self.context_steps and max(self.image_size) < MIN_CONTEXT_SIDE:
            height, width = self.image_size
            raise ConfigError(
                f"image_size {height}x{width} is too small for context prediction; make one side at least "
                f"{MIN_CONTEXT_SIDE}, or set context_steps=0"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Positions of stride 8, down and across."""
        height, width = self.image_size
        return -(-height // 8), -(-width // 8)


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


class Distances(NamedTuple):
    """Distances of a batch.

    positions: of each position of the grid of stride 8, by each density in the order of their names.
    composition: of each whole image; None without `composition`.
    """

    positions: list[Float[Tensor, "batch down across"]]
    composition: Float[Tensor, "batch 2"] | None

    @classmethod
    def concatenate(cls, batches: Sequence["Distances"]) -> "Distances":
        """Return several batches as one."""
        positions = [torch.cat(kind) for kind in zip(*(batch.positions for batch in batches), strict=True)]
        compositions = [batch.composition for batch in batches if batch.composition is not None]
        return cls(positions, torch.cat(compositions) if compositions else None)

    def select(self, images: Int[Tensor, " images"]) -> "Distances":
        """Return those of the chosen images."""
        composition = None if self.composition is None else self.composition[images]
        return Distances([kind[images] for kind in self.positions], composition)


class Densities(nn.Module):
    """The density models, each with a distance of its own.

    per_stride: codebook of fine features, each stride with equal weight. per_channel: the same, each channel with equal
    weight. Each gets a share of `codebook_size` entries. deep: codebook of stride 32. position: a Gaussian of stride 4
    at each position. context: prediction of the fine features, strides with equal weight, from those around them; only
    with `context_steps`. composition: a subspace of whole maps of stride 16, which gives two distances of an image;
    only with `composition`.
    """

    stride_weights: Tensor

    def __init__(self, config: MetalFeaturesConfig, widths: Sequence[int], share: float = 0.5) -> None:
        """Construct the models, unfitted. widths: channels of strides 4, 8, 16. share: of the entries, per stride."""
        super().__init__()
        self.context_steps = config.context_steps
        stride_weights = torch.cat([torch.full((width,), 1 / math.sqrt(width)) for width in widths])
        self.register_buffer("stride_weights", stride_weights[:, None, None], persistent=False)
        self.position_channels, self.stride_16_channels = widths[0], widths[2]
        size, selection = config.codebook_size, config.selection
        first = round(size * min(max(share, MIN_SHARE), 1 - MIN_SHARE))
        self.per_stride, self.per_channel = (Codebook(max(1, part), selection) for part in (first, size - first))
        self.deep = Codebook(min(size, DEEP_CODEBOOK_SIZE))
        self.position = PositionalGaussian()
        self.context = ContextPrediction(sum(widths), config.grid) if self.context_steps else None
        self.composition = Composition(widths[2], config.grid) if config.composition else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the densities of positions in the order of their distances."""
        return ("per_stride", "per_channel", "deep", *(("context",) if self.context_steps else ()), "position")

    def fit(self, features: Features, images: Int[Tensor, " images"], seed: int) -> None:
        """Fit all models on the features of the chosen images, which are good."""
        most = MAX_CORESET_POINTS if self.per_channel.selection == "coreset" else MAX_POINTS
        sample, stride_weights = sampled_positions(features.fine, seed, images, most), self.stride_weights.flatten()
        self.per_stride.fit(sample, seed, stride_weights)
        self.per_channel.fit(sample, seed)
        self.deep.fit(sampled_positions(features.deep, seed, images), seed)
        self.position.fit(features.fine[:, : self.position_channels][images])
        if self.context_steps:
            self.context = ContextPrediction.fitted(features.fine[images], stride_weights, self.context_steps, seed)
        if self.composition is not None:
            self.composition.fit(self._stride_16(batch.fine) for batch in features.batches(images))

    def forward(self, features: Features) -> Distances:
        """Return the distances of the positions, in the order of `names`, and those of the whole images."""
        fine = features.fine
        deep = F.interpolate(self.deep(features.deep)[:, None], fine.shape[-2:], mode="bilinear")[:, 0]
        context = [self.context(fine)] if self.context is not None else []
        weighted = fine * self.stride_weights
        position = self.position(fine[:, : self.position_channels])
        composition = None if self.composition is None else self.composition(self._stride_16(fine))
        return Distances([self.per_stride(weighted), self.per_channel(fine), deep, *context, position], composition)

    def _stride_16(self, fine: Tensor) -> Tensor:
        return fine[:, -self.stride_16_channels :]


class MetalFeatures(FittedDetector):
    """A frozen backbone, densities of its features, and the mean of their normalized log-distances.

    density_weights: the weight of each density. w is the fraction of the features' variance that position explains,
        squared: small where that is less than half. The positional Gaussian and the per-stride codebook have the weight
        w, the per-channel codebook 1 - w, the deep codebook 1/2, context prediction 1/4.
    """

    name = "metal_features"
    min_images = 2
    self_calibrated = True
    config: MetalFeaturesConfig
    density_weights: Tensor

    def __init__(self, config: MetalFeaturesConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, TAPS)
        channels = channels_of(self.backbone.network)
        self.widths = [channels[tap] for tap in TAPS[:3]]
        self.fine_standardization = Standardization(sum(self.widths))
        self.deep_standardization = Standardization(channels["s32"])
        self.densities = Densities(config, self.widths)
        names = self.densities.names
        self.log_distance = NormalizedLogDistance(len(names))
        self.positional_mean = PositionalMean() if config.positional_mean else None
        self.composition_score = CompositionScore() if config.composition else None
        self.photometric = PhotometricNormalization(adjust_contrast=False)  # contrast hardly changes the features
        self.register_buffer("density_weights", torch.ones(len(names)))

    @classmethod
    def required_images(cls) -> int:
        """Return the fewest good images in all: those that `fit` needs for both halves."""
        return cls.min_images

    def fit(self, pixels: UInt8[np.ndarray, "images height width 3"], seed: int) -> Residuals:
        """Fit densities on half of the images, their scales on the other half, and the densities on all images.

        Returns:
            Out-of-fold residuals of the images.

        Raises:
            ConfigError: no weights for the backbone. DataError: fewer than two images.
        """
        if len(pixels) < self.min_images:
            raise DataError(f"metal_features needs at least {self.min_images} good images to fit on, got {len(pixels)}")
        self.backbone.load(self.config.weights)
        self.backbone.to(self.device)
        held = (1 + self.config.copies) * math.prod(self.config.image_size)
        pixels = subsampled(pixels, max(self.min_images, MAX_PIXELS // held))
        with torch.no_grad():
            if self.config.photometric_normalization:
                self.photometric.fit(batches(pixels, self.device))
            features = self._features_of_all(pixels, seed, fits_standardization=True)
            # An image's copies are in the same half: a density must not be fitted on what its scale is fitted on.
            every = torch.arange(len(features.fine))
            half = every % len(pixels) % 2
            on_position = features.fine[: len(pixels), : self.densities.position_channels]
            self.density_weights = self._weights(variance_explained_by_position(on_position))
            distances = [
                self._distances_without(features, every[half != side], every[half == side], seed)
                for side in counted((0, 1), "scales", "half")
            ]
            order = torch.cat([every[half == side] for side in (0, 1)])
            self._fit_scales(Distances.concatenate(distances).select(order.argsort()), len(pixels))
            self.densities = self._fitted_densities(features, every, seed)
        return self._out_of_fold(pixels, features)

    def out_of_fold_residuals(self, training: Pixels, seed: int = 0) -> Residuals:  # noqa: ARG002 (seed 0)
        """Return residuals of the training images from densities that were fitted without them."""
        with torch.no_grad():
            features = self._features_of_all(training, seed=0)
        return self._out_of_fold(training, features)

    def training_scores_are_out_of_fold(self, scoring: Scoring) -> bool:  # noqa: ARG002 (both are equal)
        """Return True: the densities, which alone can overfit single images, were fitted without the image."""
        return True

    def features(self, images: Float[Tensor, "batch 3 height width"]) -> Features:
        """Return the standardized features of RGB images in [0, 1]."""
        fine, deep = self._maps(images)
        return Features(self.fine_standardization(fine), self.deep_standardization(deep))

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the mean normalized log-distance of each pixel: 1 is about the 99 % quantile of good positions.

        The excess of good images at the position is subtracted (see `PositionalMean`).
        `Residuals.score` is the contribution of the composition to the image score; None without it.
        """
        return self._residuals_from(self.densities(self.features(images)))

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the mean normalized log-distance itself."""
        return residuals.values[:, 0]

    def _image_score(
        self, residuals: Residuals, maps: Tensor, smoothed: Tensor, scoring: Scoring
    ) -> Float[Tensor, " batch"]:
        """Return the map's score, joined with the contribution of the composition."""
        return joined_score(super()._image_score(residuals, maps, smoothed, scoring), residuals.score)

    def _out_of_fold(self, pixels: Pixels, features: Features) -> Residuals:
        """Return residuals of at most `MAX_OUT_OF_FOLD` images, given the features of all images and their copies."""
        chosen = subsampled_indices(len(pixels), MAX_OUT_OF_FOLD)
        offsets = len(pixels) * np.arange(1 + self.config.copies)[:, None]

        def residuals_without(left_out: Bool[np.ndarray, " images"]) -> Residuals:
            others = torch.from_numpy((offsets + chosen[~left_out]).ravel())
            images = torch.from_numpy(chosen[left_out])  # not their copies
            with torch.no_grad():
                return self._residuals_from(self._distances_without(features, others, images, seed=0))

        return self._residuals_by_folds(pixels[chosen], residuals_without)

    def _residuals_from(self, distances: Distances) -> Residuals:
        mean = self.log_distance(distances.positions, self.density_weights)
        above = mean if self.positional_mean is None else self.positional_mean(mean)
        values = as_map(F.interpolate(above[:, None], self.config.image_size, mode="bilinear"))
        if self.composition_score is None or distances.composition is None:
            return Residuals(values)
        return Residuals(values, score=self.composition_score(distances.composition, level(mean)))

    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.backbone(self.photometric(images))
        grid = (maps[1].shape[-2], maps[1].shape[-1])
        return neighbourhoods(maps[:3], grid), neighbourhoods(maps[3:], (maps[3].shape[-2], maps[3].shape[-1]))

    def _with_copies(self, pixels: np.ndarray, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield the images in batches, then perturbed copies of all, as many as are set."""
        parts = list(itertools.product(range(1 + self.config.copies), range(0, len(pixels), BATCH_SIZE)))

        def batch(copy: int, start: int) -> np.ndarray:
            images = pixels[start : start + BATCH_SIZE]
            return np.stack([perturbed(image, rng) for image in images]) if copy else images

        # One thread perturbs the next batch, in order, while the backbone works on this one.
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(batch, *parts[0])
            for number in counted(range(len(parts)), "features", "batch"):
                images = following.result()
                if number + 1 < len(parts):
                    following = ahead.submit(batch, *parts[number + 1])
                yield to_batch(images, self.device)

    def _features_of_all(self, pixels: np.ndarray, seed: int, *, fits_standardization: bool = False) -> Features:
        """Return the standardized features of all images and their copies, which are held once.

        fits_standardization: fit mean and deviation of each channel on them first.
        """
        maps: Features | None = None
        parts: list[Features] = []
        filled = 0
        for batch in self._with_copies(pixels, np.random.default_rng(seed)):
            new = self._maps(batch)
            if maps is None:
                count = (1 + self.config.copies) * len(pixels)
                maps = Features(*(empty_like(kind, (count, *kind.shape[1:])) for kind in new))
            part = Features(*(kind[filled : filled + len(batch)] for kind in maps))
            for kind, values in zip(part, new, strict=True):
                kind.copy_(values)
            parts.append(part)
            filled += len(batch)
        assert maps is not None
        if fits_standardization:
            self.fine_standardization.fit(part.fine for part in parts)
            self.deep_standardization.fit(part.deep for part in parts)
        for part in parts:  # in place
            part.fine.copy_(self.fine_standardization(part.fine))
            part.deep.copy_(self.deep_standardization(part.deep))
        return maps

    def _fit_scales(self, held_out: Distances, images: int) -> None:
        """Fit the scales on distances of held-out images, then of their copies. images: their number without copies."""
        self.log_distance.fit(held_out.positions)
        mean = self.log_distance(held_out.positions, self.density_weights)
        if self.positional_mean is not None:
            self.positional_mean.fit(mean, images)
        if self.composition_score is not None and held_out.composition is not None:
            self.composition_score.fit(held_out.composition, level(mean), images)

    def _weights(self, explained: Float[Tensor, ""]) -> Float[Tensor, " densities"]:
        """Return the weights of the densities, given the fraction of the variance that position explains."""
        aligned = float(explained.square())
        weights = {"per_stride": aligned, "per_channel": 1 - aligned, "deep": 0.5, "context": 0.25, "position": aligned}
        return torch.tensor([weights[name] for name in self.densities.names], device=explained.device)

    def _fitted_densities(self, features: Features, images: Int[Tensor, " images"], seed: int) -> Densities:
        """Return densities of the chosen images; a codebook's share of the entries is its weight."""
        share = float(self.density_weights[self.densities.names.index("per_stride")])
        densities = Densities(self.config, self.widths, share).to(self.device)
        densities.fit(features, images, seed)
        return densities

    def _distances_without(
        self, features: Features, fitted_on: Int[Tensor, " images"], others: Int[Tensor, " others"], seed: int
    ) -> Distances:
        """Return the distances of other images by densities that are fitted on the first ones."""
        densities = self._fitted_densities(features, fitted_on, seed)
        return Distances.concatenate([densities(batch) for batch in features.batches(others)])
