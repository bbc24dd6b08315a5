"""EfficientAD (Batzner, Heckler & König 2024, arXiv:2303.14535).

The teacher computes features of a network trained on ImageNet: it is that network or, as in the paper, a small network
distilled from it. On good images, the first half of the student's output is trained to predict the teacher's features;
only the largest errors enter the loss. An autoencoder is trained to predict the teacher's features, too, and the second
half of the student's output to predict the autoencoder's output. A difference between student and teacher indicates a
local (structural) anomaly. A difference between student and autoencoder indicates a global (logical) anomaly: a wrong
arrangement of valid parts.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, GradientDetector, Protocol
from metalad.detectors.distillation import PartLearner, load_in_order, random_variants, trained_backbone
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone, neighbourhoods
from metalad.nn.networks import IMAGENET_DEVIATION, IMAGENET_MEAN, Tap
from metalad.nn.pixels import Pixels, batches
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Learner, Training

HARD_QUANTILE = 0.999
"""The student's loss uses an image's errors at or above this quantile."""
LOW, HIGH, SCALED_RANGE = 0.9, 0.995, 0.1
"""Two quantiles of a map on held-out good images; the map is scaled so that their difference is `SCALED_RANGE`."""
ENLARGEMENT = 2
"""Factor by which an image is enlarged before the network trained on ImageNet."""
BORDER = 4
"""Positions missing on each side of the map, compared with a quarter of the image's size (no padding)."""
MIN_SIDE = 48


@dataclass(frozen=True, kw_only=True)
class EfficientADConfig(DetectorConfig):
    """Settings of EfficientAD; the paper's are teacher=distilled, image_size=256, width=128 (medium: 256),
    channels=384, autoencoder=64 and jitter=true."""

    smoothing_sigma: float = setting(0.0, "sigma of the Gaussian smoothing of the map, in resized pixels; 0 = off")
    teacher: Literal["backbone", "distilled"] = setting(
        "backbone", "the backbone itself, or a small network distilled from it"
    )
    size: Literal["small", "medium"] = setting("small", "student and distilled teacher: EfficientAD-S or -M")
    width: int = setting(32, "channels of their first layer; paper: 128 for small, 256 for medium")
    channels: int = setting(152, "features of the teacher; paper: 384")
    autoencoder: int = setting(32, "channels of the autoencoder's widest inner layers; paper: 64")
    jitter: bool = setting(False, "train the autoencoder on images with changed brightness, contrast or saturation")
    penalty: Literal["none", "varied"] = setting("none", "varied: penalize the student's features on altered images")
    backbone: str = setting("lite0", "network trained on ImageNet; all but lite0-2 need weights=PATH")
    weights: str | None = setting(None, "weights file of the backbone; none: the installed weights")
    taps: tuple[Tap, ...] = setting(("s8", "s16"), "strides of the backbone's feature maps that are used")
    teacher_weights: str | None = setting(None, "distilled: weights file of a trained teacher; none: train it")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if min(self.width, self.channels) < 1 or self.autoencoder < 2:
            raise ConfigError("width and channels must be at least 1, autoencoder at least 2")
        if min(self.image_size) < MIN_SIDE or any(side % 4 for side in self.image_size):
            raise ConfigError(f"image_size is {self.image_size}; take multiples of 4, at least {MIN_SIDE} pixels")
        if self.teacher_weights and self.teacher == "backbone":
            raise ConfigError("teacher_weights needs teacher=distilled")


def patch_descriptor(size: Literal["small", "medium"], width: int, channels: int) -> nn.Sequential:
    """Return a network with a receptive field of 33 pixels and stride 4, without padding (Tables 7 and 8)."""

    def convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, kernel), nn.ReLU()]

    layers = [*convolution(3, width, 4), nn.AvgPool2d(2), *convolution(width, 2 * width, 4), nn.AvgPool2d(2)]
    if size == "small":
        return nn.Sequential(*layers, *convolution(2 * width, 2 * width, 3), nn.Conv2d(2 * width, channels, 4))
    layers += [*convolution(2 * width, 2 * width, 1), *convolution(2 * width, 2 * width, 3)]
    return nn.Sequential(*layers, *convolution(2 * width, channels, 4), nn.Conv2d(channels, channels, 1))


class Autoencoder(nn.Module):
    """Autoencoder with a bottleneck of one position: it encodes the global arrangement, not fine detail (Table 9)."""

    def __init__(self, image_size: tuple[int, int], width: int, channels: int) -> None:
        super().__init__()
        self.image_size = image_size
        halved = [3, width // 2, width // 2, width, width, width]
        encoder: list[nn.Module] = []
        for inputs, outputs in pairwise(halved):
            encoder += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
        # With the paper's 256 pixels, 8×8 positions are left, which the last kernel covers.
        bottleneck = (image_size[0] // 32, image_size[1] // 32)
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(width, width, bottleneck))
        self.decoder = nn.ModuleList(nn.Conv2d(width, width, 4, 1, 2) for _ in range(6))
        self.last = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, channels, 3, 1, 1))

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Yield the size that maps are resized to before each decoder layer: 3×3 to 127×127 for images of 256."""
        for divisor, subtracted in ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1)):
            height, width = (max(1, side // divisor - subtracted) for side in self.image_size)
            yield height, width

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch channels down across"]:
        """Return the predicted teacher features on a grid."""
        maps = self.encoder(images)
        for layer, size in zip(self.decoder, self.sizes(), strict=True):
            maps = F.dropout(F.relu(layer(F.interpolate(maps, size, mode="bilinear"))), 0.2, self.training)
        decoded: Tensor = self.last(F.interpolate(maps, grid, mode="bilinear"))
        return decoded


class EfficientAD(GradientDetector):
    """EfficientAD: teacher, student, autoencoder, and quantiles of the two maps.

    low, high: quantiles of both maps on held-out good images; the student-teacher map comes first.
    """

    name = "efficientad"
    config: EfficientADConfig
    low: Tensor
    high: Tensor

    def __init__(self, config: EfficientADConfig) -> None:
        super().__init__(config)
        self.teacher: Backbone | nn.Sequential = Backbone(config.backbone, config.taps)
        if config.teacher == "distilled":
            self.teacher = patch_descriptor(config.size, config.width, config.channels)
        self.student = patch_descriptor(config.size, config.width, 2 * config.channels)
        self.autoencoder = Autoencoder(config.image_size, config.autoencoder, config.channels)
        self.described, self.target = Standardization(config.channels), Standardization(config.channels)
        self.register_buffer("low", torch.zeros(2))
        self.register_buffer("high", torch.ones(2))

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the paper's 60,000 steps for the teacher and 70,000 for the student, or a small part of both.

        The paper divides the student's learning rate by ten for the last 5 % of the steps; this plan does not. The
        first stage is omitted if the teacher is a backbone or comes from a file.
        """
        if protocol == "paper":
            paper = partial(Training, learning_rate=1e-4, weight_decay=1e-5, keep="last")
            teacher, student = paper(stage="teacher", steps=60_000, batch_size=16), paper(steps=70_000, batch_size=1)
        else:
            fast = partial(Training, learning_rate=1e-3, schedule="cosine", keep="last")
            teacher, student = fast(stage="teacher", steps=300, batch_size=16), fast(steps=600, batch_size=4)
        student = dataclasses.replace(student, stage="student")
        given = self.config.teacher == "backbone" or self.config.teacher_weights
        return (student,) if given else (teacher, student)

    def learner(self, stage: str) -> Learner:
        """Return the teacher with the source of its targets, or student and autoencoder."""
        if stage == "teacher":
            return PartLearner(self.teacher, partial(self._teacher_loss, self._source()))
        return PartLearner(nn.ModuleList([self.student, self.autoencoder]), self.loss)

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Fit the standardization of the teacher's targets, or of its output, on the training images."""
        torch.manual_seed(seed)
        with torch.no_grad():
            if stage == "teacher":
                source = self._source()
                crops = (random_variants(batch, self.config.image_size) for batch in batches(pixels, self.device))
                self.described.fit(self._source_features(source, crop) for crop in crops)
                return
            if isinstance(self.teacher, Backbone):
                self.teacher.load(self.config.weights)
                self.teacher.to(self.device)
            elif self.config.teacher_weights:
                load_in_order(self.teacher, self.config.teacher_weights)
            self.target.fit(self._teacher_features(batch) for batch in batches(pixels, self.device))

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the student's and the autoencoder's loss (Algorithm 1)."""
        target, predicted = self._targets_and_predictions(images)
        loss = hard_loss((predicted[:, : self.config.channels] - target).square())
        if self.config.penalty == "varied":
            penalized = self.student(_normalised(random_variants(images, self.config.image_size)))
            loss = loss + penalized[:, : self.config.channels].float().square().mean()
        if self.config.jitter:
            images = jittered(images)
            target, predicted = self._targets_and_predictions(images)
        reconstructed = self._reconstruct_features(images, target)
        loss = loss + (reconstructed - target).square().mean()
        return loss + (predicted[:, self.config.channels :] - reconstructed).square().mean()

    def maps(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2 down across"]:
        """Return the mean squared difference of the student from the teacher, and from the autoencoder."""
        target, predicted = self._targets_and_predictions(images)
        teacher_half, autoencoder_half = torch.split(predicted, self.config.channels, 1)
        reconstructed = self._reconstruct_features(images, target)
        return torch.stack(
            [(teacher_half - target).square().mean(1), (autoencoder_half - reconstructed).square().mean(1)], 1
        )

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Compute the quantiles of both maps on held-out good images."""
        del training
        with torch.no_grad():
            maps = torch.cat([self.maps(batch).cpu() for batch in batches(held_out, self.device)])
        values = maps.transpose(0, 1).flatten(1).numpy()
        for quantile, buffer in ((LOW, self.low), (HIGH, self.high)):
            buffer.copy_(torch.from_numpy(np.quantile(values, quantile, axis=1)))

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the square root of the mean of both maps, each scaled by its quantiles.

        The paper also subtracts the lower quantile, a constant; without the subtraction all values are at least 0.
        """
        scale = SCALED_RANGE / (self.high - self.low).clamp_min(1e-12)
        joined = (self.maps(images) * scale[:, None, None]).mean(1, keepdim=True)
        padded = F.pad(joined, (BORDER,) * 4, mode="replicate")
        return Residuals(F.interpolate(padded, images.shape[-2:], mode="bilinear").sqrt())

    def _source(self) -> Backbone:
        config = self.config
        return trained_backbone(config.backbone, config.taps, config.weights, self.device)

    def _teacher_loss(self, source: Backbone, images: Tensor) -> Tensor:
        crops = random_variants(images, self.config.image_size)
        with torch.no_grad():
            target = self.described(self._source_features(source, crops))
        difference: Tensor = self.teacher(_normalised(crops)).float() - target
        return difference.square().mean()

    def _source_features(self, source: Backbone, images: Tensor) -> Tensor:
        """Return the teacher's target features on its grid: a quarter of the image's size minus the border."""
        size = tuple(ENLARGEMENT * side for side in images.shape[-2:])
        maps = [tap.float() for tap in source(F.interpolate(images, size, mode="bilinear"))]
        finest = max(maps, key=lambda tap: tap.shape[2])
        joined = neighbourhoods(maps, (finest.shape[2], finest.shape[3]))
        if joined.shape[1] != self.config.channels:
            channels_last = joined.permute(0, 2, 3, 1)
            pooled = F.adaptive_avg_pool1d(channels_last.flatten(1, 2), self.config.channels)
            joined = pooled.reshape(*channels_last.shape[:3], -1).permute(0, 3, 1, 2)
        height, width = (side // 4 for side in images.shape[-2:])
        return F.interpolate(joined, (height, width), mode="bilinear")[..., BORDER:-BORDER, BORDER:-BORDER]

    def _targets_and_predictions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's standardized features and the student's output (both halves)."""
        with torch.no_grad():
            target = self.target(self._teacher_features(images))
        return target, self.student(_normalised(images)).float()

    def _teacher_features(self, images: Tensor) -> Tensor:
        if isinstance(self.teacher, Backbone):
            return self._source_features(self.teacher, images)
        features: Tensor = self.teacher(_normalised(images))
        return features

    def _reconstruct_features(self, images: Tensor, target: Tensor) -> Tensor:
        reconstructed: Tensor = self.autoencoder(_normalised(images), (target.shape[2], target.shape[3])).float()
        return reconstructed


def hard_loss(errors: Float[Tensor, "batch channels down across"]) -> Float[Tensor, ""]:
    """Return the batch mean of each image's mean error at or above its 0.999 quantile."""
    flat = errors.flatten(1)
    count = flat.shape[1] - math.ceil(HARD_QUANTILE * (flat.shape[1] - 1))
    return flat.topk(count, 1).values.mean()


def jittered(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Return each image with its brightness, contrast or saturation, chosen at random, changed by up to a fifth."""
    count, device = len(images), images.device
    grey = images.mean(1, keepdim=True)
    fixed_points = torch.stack(
        [torch.zeros_like(images), grey.mean((2, 3), keepdim=True).expand_as(images), grey.expand_as(images)]
    )
    fixed = fixed_points[torch.randint(3, (count,), device=device), torch.arange(count, device=device)]
    factor = 0.8 + 0.4 * torch.rand(count, 1, 1, 1, device=device)
    return (fixed + factor * (images - fixed)).clamp(0, 1)


def _normalised(images: Tensor) -> Tensor:
    mean, deviation = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return (images - mean) / deviation
