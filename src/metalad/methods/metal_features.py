"""MeTAL on features: distances of a pretrained network's features from those of good images.

A frozen network trained on ImageNet gives a feature vector at each position of an image. Two codebooks of fine features
(each stride with equal weight, or each channel) and one of deep features measure the distance from the nearest entry;
those of fine features are coresets, which keep rare features. A Gaussian at each position measures the distance from
what is usual there. The map is the weighted mean of these distances, normalized on held-out good images (see
`NormalizedLogDistance`). The weights, and the entries of both codebooks, depend on how much of the features' variance
position explains: little on textures and objects that turn. A part of the map's mean on good images is subtracted (see
`PositionalMean`). The image score is the map's maximum, joined with distances of the whole image: by its composition,
and by the subspace of features (see `Densities`).

Where good images differ in the level of the map, as natural surfaces do, the codebooks do not cover the content of a
new image. There the subspace does not count, and a blind transformer, which predicts the features of a position from
those around it in the same image, has a part in the map that localizes the anomaly (see `ContextPrediction`), but not
in the score.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from metalad.data.folds import fold_of_each
from metalad.data.splitting import subsampled_around, subsampled_indices
from metalad.detectors.base import DetectorConfig, FittedDetector, Scoring
from metalad.detectors.density.codebook import Selection
from metalad.detectors.density.composition import CompositionScore, joined_score, level
from metalad.detectors.density.context import COMPONENTS, POOLED, REACH, ContextPrediction
from metalad.detectors.density.feature_densities import (
    HALF_WEIGHT_IMAGES,
    IMAGE_WEIGHTS,
    NAMES,
    Densities,
    Distances,
)
from metalad.detectors.density.gaussian import level_variation, variance_explained_by_position
from metalad.detectors.density.good_features import BATCH_SIZE, Features, GoodFeatures, good_features
from metalad.detectors.density.log_distance import NormalizedLogDistance, as_map, tail
from metalad.detectors.density.positional_mean import PositionalMean
from metalad.detectors.out_of_fold import MAX_IMAGES as MAX_OUT_OF_FOLD
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone, neighbourhoods
from metalad.nn.network import TAPS
from metalad.nn.networks import channels_of
from metalad.nn.photometric import PhotometricNormalization
from metalad.nn.pixels import batches
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.progress import counted
from metalad.runtime.settings import auto_size, setting

MIN_CONTEXT_SIDE = 8 * ((2 * REACH + 1) * POOLED + 1)
"""Pixels of one pooled position more than are hidden at once, so that each can be predicted from another."""
MIN_CONTEXT = 0.1
"""A smaller weight of context prediction is 0."""
MIN_CONTEXT_IMAGES = 8
"""With fewer images there is no context prediction: half of them are too few to train it and to estimate the weight."""
MAX_CONTEXT_SIGMA = 8.0
MAX_PIXELS = 1024 * 256**2
"""Pixels of the images whose features are held at once, perturbed copies included: 0.8 gigabytes for Lite0's channels.
Turned copies are held beside them: a sixteenth as many pixels, or 8 images."""


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
    copies: int = setting(
        1,
        "copies of each good image with small random changes of light, position and focus; 0: no turned copies either",
    )
    photometric_normalization: bool = setting(True, "scale every image to the mean brightness of the good images")
    positional_mean: bool = setting(
        True, "subtract a part of the mean distance of good images at each position, where it is above average"
    )
    composition: bool = setting(True, "count in the image score, too, how unusual the image is as a whole")
    context_steps: int = setting(
        400, "training steps of a blind transformer that predicts features, where good images call for it; 0: without"
    )
    context_components: int = setting(COMPONENTS, "principal components of the features that it predicts")
    context_sigma: float = setting(0.75, "Gaussian filter over its distances, in its positions (16 pixels); 0 = none")
    context_in_score: bool = setting(False, "count it in the image score, too")

    def __post_init__(self) -> None:
        """Check settings that depend on each other."""
        super().__post_init__()
        if not 0 <= self.context_sigma <= MAX_CONTEXT_SIGMA:  # NaN, too
            raise ConfigError(f"context_sigma is {self.context_sigma}; it must lie between 0 and {MAX_CONTEXT_SIGMA:g}")
        if self.codebook_size < 1 or self.context_components < 1 or self.copies < 0 or self.context_steps < 0:
            raise ConfigError(
                "codebook_size and context_components must be at least 1, copies and context_steps at least 0"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Positions of stride 8, down and across."""
        height, width = self.image_size
        return -(-height // 8), -(-width // 8)

    @property
    def predicts_context(self) -> bool:
        """Whether there can be context prediction: in a smaller image all positions would be masked."""
        return self.context_steps > 0 and max(self.image_size) >= MIN_CONTEXT_SIDE


class MetalFeatures(FittedDetector):
    """A frozen backbone, densities of its features, and the mean of their normalized log-distances.

    density_weights: the weight of each density. w is the fraction of the features' variance that position explains,
        squared. The positional Gaussian and the per-stride codebook have the weight w, the per-channel codebook 1 - w,
        the deep codebook 1/2.
    context_weight: that of context prediction, relative to these; 0 without it.
    context_scale: of the mean with context prediction, so that its 99 % quantile less its mean on good images is kept.
    """

    name = "metal_features"
    min_images = 2
    self_calibrated = True
    config: MetalFeaturesConfig
    density_weights: Tensor
    context_weight: Tensor
    context_scale: Tensor

    def __init__(self, config: MetalFeaturesConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, TAPS)
        channels = channels_of(self.backbone.network)
        self.widths = [channels[tap] for tap in TAPS[:3]]
        self.fine_standardization = Standardization(sum(self.widths))
        self.deep_standardization = Standardization(channels["s32"])
        self.densities = self._unfitted_densities(context=config.predicts_context)
        self.log_distance = NormalizedLogDistance(len(NAMES))
        self.context_log_distance = NormalizedLogDistance(1)
        self.positional_mean = PositionalMean() if config.positional_mean else None
        self.composition_score = CompositionScore(IMAGE_WEIGHTS, HALF_WEIGHT_IMAGES) if config.composition else None
        self.photometric = PhotometricNormalization(adjust_contrast=False)  # contrast hardly changes the features
        self.register_buffer("density_weights", torch.ones(len(NAMES)))
        self.register_buffer("context_weight", torch.tensor(0.0))
        self.register_buffer("context_scale", torch.tensor(1.0))
        self.register_load_state_dict_pre_hook(_drop_unused_context)  # type: ignore[no-untyped-call]

    @classmethod
    def required_images(cls) -> int:
        """Return the fewest good images in all: those that `fit` needs for both halves."""
        return cls.min_images

    @property
    def distance_weights(self) -> Mapping[str, float]:
        """The weights of the densities and of context prediction."""
        return dict(zip((*NAMES, "context"), [*self.density_weights.tolist(), float(self.context_weight)], strict=True))

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
        limit = max(self.min_images, MAX_PIXELS // held)
        scored = subsampled_indices(len(pixels), min(limit, MAX_OUT_OF_FOLD))
        chosen = subsampled_around(len(pixels), limit, scored)
        pixels = pixels[chosen] if len(chosen) < len(pixels) else pixels
        with torch.no_grad():
            if self.config.photometric_normalization:
                self.photometric.fit(batches(pixels, self.device))
            standardizations = self.fine_standardization, self.deep_standardization
            turns = self.config.copies > 0 and self.config.composition
            good = good_features(pixels, self.config.copies, turns, seed, self._maps, standardizations, self.device)
            # All copies of an image are in the same half: a density must not be fitted on what its scale is fitted on.
            every = good.with_perturbed
            half = torch.from_numpy(fold_of_each(pixels, 2)).repeat(1 + self.config.copies)
            on_position = good.features.fine[: len(pixels), : self.densities.position_channels]
            self.density_weights = self._weights(variance_explained_by_position(on_position))
            distances = [
                self._distances_without(good, every[half != side], every[half == side], seed)
                for side in counted((0, 1), "scales", "half")
            ]
            held_out = Distances.concatenate(distances).select(half.argsort(stable=True).argsort())
            self.log_distance.fit(held_out.positions)
            variation = self._variation_of_level(held_out.select(every[: len(pixels)]))
            self.context_weight = self._context_weight(variation, len(pixels))
            if self.composition_score is not None:
                self.composition_score.weights[-1] = IMAGE_WEIGHTS[-1] * (1 - variation)
            self._fit_scales(held_out, len(pixels))
            if self.context_weight > 0:
                self._fit_context_scales(good.features, held_out, half, seed)
            self.densities = self._fitted_densities(good, every, seed, context=bool(self.context_weight > 0))
        return self._out_of_fold(pixels, good, np.searchsorted(chosen, scored), seed)

    def training_scores_are_out_of_fold(self, scoring: Scoring) -> bool:  # noqa: ARG002 (both are equal)
        """Return True: the densities, which alone can overfit single images, were fitted without the image."""
        return True

    def features(self, images: Float[Tensor, "batch 3 height width"]) -> Features:
        """Return the standardized features of RGB images in [0, 1]."""
        fine, deep = self._maps(images)
        return Features(self.fine_standardization(fine), self.deep_standardization(deep))

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the mean normalized log-distance of each pixel: 1 is about the 99 % quantile of good positions.

        The excess at the position of the mean without context prediction is subtracted (see `PositionalMean`).
        `Residuals.contribution` is that of the composition to the image score; None without it.
        `Residuals.localization` is the map with context prediction; None without it, or if it counts in the score.
        """
        return self._residuals_from(self.densities(self.features(images)))

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the mean normalized log-distance that gives the score."""
        return residuals.values[:, 0]

    def _image_score(
        self, residuals: Residuals, maps: Tensor, smoothed: Tensor, scoring: Scoring
    ) -> Float[Tensor, " batch"]:
        """Return the map's score, joined with the contribution of the composition."""
        return joined_score(super()._image_score(residuals, maps, smoothed, scoring), residuals.contribution)

    def _out_of_fold(
        self, pixels: np.ndarray, good: GoodFeatures, scored: Int[np.ndarray, " scored"], seed: int
    ) -> Residuals:
        """Return residuals of the chosen images, given the features of all images and their copies."""
        offsets = len(pixels) * np.arange(1 + self.config.copies)[:, None]
        in_score = self.config.context_in_score and bool(self.context_weight > 0)

        def residuals_without(left_out: Bool[np.ndarray, " scored"]) -> Residuals:
            others = torch.from_numpy((offsets + scored[~left_out]).ravel())
            images = torch.from_numpy(scored[left_out])  # not their copies
            with torch.no_grad():
                return self._residuals_from(self._distances_without(good, others, images, seed, context=in_score))

        return self._residuals_by_folds(pixels[scored], residuals_without)

    def _residuals_from(self, distances: Distances) -> Residuals:
        mean = self.log_distance(distances.positions, self.density_weights)
        contribution = None
        if self.composition_score is not None and distances.composition is not None:
            contribution = self.composition_score(distances.composition, level(mean))
        if distances.context is None:
            return Residuals(self._as_map(mean), contribution=contribution)
        joined = self._as_map(self.context_scale * self._with_context(mean, distances.context))
        if self.config.context_in_score:
            return Residuals(joined, contribution=contribution)
        return Residuals(self._as_map(mean), contribution=contribution, localization=joined[:, 0])

    def _with_context(self, mean: Tensor, context: Tensor) -> Tensor:
        (log_distance,) = self.context_log_distance.normalized([context])
        total = self.density_weights.sum()
        return (total * mean + self.context_weight * log_distance) / (total + self.context_weight)

    def _as_map(self, log_distance: Tensor) -> Float[Tensor, "batch 1 height width"]:
        above = log_distance if self.positional_mean is None else self.positional_mean(log_distance)
        return as_map(F.interpolate(above[:, None], self.config.image_size, mode="bilinear"))

    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.backbone(self.photometric(images))
        grid = (maps[1].shape[-2], maps[1].shape[-1])
        return neighbourhoods(maps[:3], grid), neighbourhoods(maps[3:], (maps[3].shape[-2], maps[3].shape[-1]))

    def _fit_scales(self, held_out: Distances, images: int) -> None:
        """Fit what depends on the mean; distances of held-out images, then of copies. images: number without copies."""
        mean = self.log_distance(held_out.positions, self.density_weights)
        if self.positional_mean is not None:
            self.positional_mean.fit(mean, images)
        if self.composition_score is not None and held_out.composition is not None:
            self.composition_score.fit(held_out.composition, level(mean), images)

    def _fit_context_scales(
        self, features: Features, held_out: Distances, half: Int[Tensor, " images"], seed: int
    ) -> None:
        """Fit the scales of context prediction on each half of the images, by one that is fitted on the other half."""
        context = torch.empty_like(held_out.positions[0])
        for side in counted((0, 1), "context scales", "half"):
            prediction = self._fitted_context(features, torch.nonzero(half != side)[:, 0], seed)
            for images in torch.split(torch.nonzero(half == side)[:, 0], BATCH_SIZE):
                context[images] = prediction(features.fine[images])
        self.context_log_distance.fit([context])
        mean = self.log_distance(held_out.positions, self.density_weights)
        self.context_scale = tail(mean) / tail(self._with_context(mean, context))

    def _weights(self, explained: Float[Tensor, ""]) -> Float[Tensor, " densities"]:
        """Return the weights of the densities, given the fraction of the variance that position explains."""
        aligned = float(explained.square())
        weights = {"per_stride": aligned, "per_channel": 1 - aligned, "deep": 0.5, "position": aligned}
        return torch.tensor([weights[name] for name in NAMES], device=explained.device)

    def _variation_of_level(self, held_out: Distances) -> Float[Tensor, ""]:
        """Return the `level_variation` of the fine distances of held-out images, without copies."""
        per_stride, per_channel = self.log_distance.normalized(held_out.positions[:2])
        return level_variation(self.density_weights[0] * per_stride + self.density_weights[1] * per_channel)

    def _context_weight(self, variation: Float[Tensor, ""], images: int) -> Float[Tensor, ""]:
        """Return the weight of context prediction, given the variation of the level and the number of images."""
        used = self.config.predicts_context and images >= MIN_CONTEXT_IMAGES and variation >= MIN_CONTEXT
        return variation if used else torch.zeros_like(variation)

    def _unfitted_densities(self, share: float = 0.5, *, context: bool) -> Densities:
        config = self.config
        return Densities(
            self.widths,
            config.grid,
            codebook_size=config.codebook_size,
            selection=config.selection,
            share=share,
            composition=config.composition,
            context=(config.context_components, config.context_sigma) if context else None,
        )

    def _fitted_densities(
        self, good: GoodFeatures, images: Int[Tensor, " images"], seed: int, *, context: bool = False
    ) -> Densities:
        """Return densities of the chosen images; a codebook's share of the entries is its weight."""
        share = float(self.density_weights[NAMES.index("per_stride")])
        densities = self._unfitted_densities(share, context=False).to(self.device)
        densities.fit(good, images, seed)
        densities.context = self._fitted_context(good.features, images, seed) if context else None
        return densities

    def _fitted_context(self, features: Features, images: Int[Tensor, " images"], seed: int) -> ContextPrediction:
        return ContextPrediction.fitted(
            (batch.fine for batch in features.batches(images)),
            self.config.grid,
            self.densities.stride_weights.flatten(),
            self.config.context_steps,
            seed,
            self.config.context_components,
            self.config.context_sigma,
        )

    def _distances_without(
        self,
        good: GoodFeatures,
        fitted_on: Int[Tensor, " images"],
        others: Int[Tensor, " others"],
        seed: int,
        *,
        context: bool = False,
    ) -> Distances:
        """Return the distances of other images by densities that are fitted on the first ones."""
        densities = self._fitted_densities(good, fitted_on, seed, context=context)
        return Distances.concatenate([densities(batch) for batch in good.features.batches(others)])


def _drop_unused_context(model: MetalFeatures, tensors: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Remove the context prediction before a state dict is loaded in which its weight is 0."""
    weight = tensors.get(f"{prefix}context_weight")
    if weight is not None and not weight > 0:
        model.densities.context = None
