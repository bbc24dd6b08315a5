"""EfficientAD (Batzner, Heckler & König 2024, arXiv:2303.14535).

A teacher knows features as networks trained on ImageNet give them: it is one, or, as in the paper, a small network that
has learnt from one. A student learns to foretell the teacher on good images, where the student is most wrong; an
autoencoder learns to do so from the whole image, and the student's other half to foretell the autoencoder. Where
student and teacher differ, a part is strange; where student and autoencoder differ, parts that are known each by itself
do not belong together.
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
from metalad.detectors.distillation import Part, fill_in_order, trained_backbone, varied
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone, neighbourhoods
from metalad.nn.networks import IMAGENET_DEVIATION, IMAGENET_MEAN, Tap
from metalad.nn.pixels import Pixels, batches
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Learner, Training

HARD = 0.999
"""The student learns from errors at or above this quantile of all of an image's."""
LOW, HIGH, HIGH_AT = 0.9, 0.995, 0.1
"""Quantiles of a map on held-out good images, and where the second, less the first, comes to lie."""
ENLARGEMENT = 2
"""Times that an image is enlarged before the network trained on ImageNet sees it."""
RIM = 4
"""Places by which the map falls short of a quarter of the image, at each side."""
LEAST = 48


@dataclass(frozen=True, kw_only=True)
class EfficientADConfig(DetectorConfig):
    """Settings of EfficientAD; the paper's are teacher=distilled, image_size=256, width=128 (medium: 256),
    channels=384, autoencoder=64 and jitter=true."""

    smoothing_sigma: float = setting(0.0, "Gaussian filter over the anomaly map, in pixels of that size; 0 = none")
    teacher: Literal["backbone", "distilled"] = setting(
        "backbone", "the backbone itself, or a small network that learns from it"
    )
    size: Literal["small", "medium"] = setting("small", "kind of student and distilled teacher: EfficientAD-S or -M")
    width: int = setting(32, "channels of their first layer; the paper takes 128 for small, 256 for medium")
    channels: int = setting(152, "features of the teacher; the paper takes 384")
    autoencoder: int = setting(32, "widest of the autoencoder's inner layers; the paper takes 64")
    jitter: bool = setting(False, "let the autoencoder learn on images changed in brightness, contrast or saturation")
    penalty: Literal["none", "varied"] = setting("none", "also keep the student's features small on altered images")
    backbone: str = setting("lite0", "network trained on ImageNet; but for lite0-2, name its weights too")
    weights: str | None = setting(None, "weights file of the backbone; none: those that are installed")
    taps: tuple[Tap, ...] = setting(("s8", "s16"), "where its features are taken")
    teacher_weights: str | None = setting(None, "distilled: weights file of one that has learnt; none: it learns first")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if min(self.width, self.channels) < 1 or self.autoencoder < 2:
            raise ConfigError("width and channels must be at least 1, autoencoder at least 2")
        if min(self.image_size) < LEAST or any(side % 4 for side in self.image_size):
            raise ConfigError(f"image_size is {self.image_size}; take multiples of 4 from {LEAST} pixels on")
        if self.teacher_weights and self.teacher == "backbone":
            raise ConfigError("teacher_weights are those of a distilled teacher; set teacher=distilled, too")


def patch_descriptor(size: Literal["small", "medium"], width: int, channels: int) -> nn.Sequential:
    """Return a network that describes patches of 33 pixels, one every 4 (Tables 7 and 8), without padding."""

    def convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, kernel), nn.ReLU()]

    layers = [*convolution(3, width, 4), nn.AvgPool2d(2), *convolution(width, 2 * width, 4), nn.AvgPool2d(2)]
    if size == "small":
        return nn.Sequential(*layers, *convolution(2 * width, 2 * width, 3), nn.Conv2d(2 * width, channels, 4))
    layers += [*convolution(2 * width, 2 * width, 1), *convolution(2 * width, 2 * width, 3)]
    return nn.Sequential(*layers, *convolution(2 * width, channels, 4), nn.Conv2d(channels, channels, 1))


class Autoencoder(nn.Module):
    """An image through the eye of a needle: it can say what belongs where, but not fine detail (Table 9)."""

    def __init__(self, image_size: tuple[int, int], width: int, channels: int) -> None:
        super().__init__()
        self.image_size = image_size
        halved = [3, width // 2, width // 2, width, width, width]
        encoder: list[nn.Module] = []
        for inputs, outputs in pairwise(halved):
            encoder += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
        # The paper's 256 pixels leave 8×8 places, which the last kernel covers; other sizes leave others.
        needle = (image_size[0] // 32, image_size[1] // 32)
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(width, width, needle))
        self.decoder = nn.ModuleList(nn.Conv2d(width, width, 4, 1, 2) for _ in range(6))
        self.last = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, channels, 3, 1, 1))

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Yield the sizes that maps are enlarged to before each layer of the decoder, from 3×3 to 127×127 at 256."""
        for divisor, less in ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1)):
            height, width = (max(1, side // divisor - less) for side in self.image_size)
            yield height, width

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch channels down across"]:
        """Return what it takes the teacher to say, on a grid of places."""
        maps = self.encoder(images)
        for layer, size in zip(self.decoder, self.sizes(), strict=True):
            maps = F.dropout(F.relu(layer(F.interpolate(maps, size, mode="bilinear"))), 0.2, self.training)
        decoded: Tensor = self.last(F.interpolate(maps, grid, mode="bilinear"))
        return decoded


class EfficientAD(GradientDetector):
    """EfficientAD: teacher, student, autoencoder, and the units of the two maps.

    low, high: the quantiles of each map on held-out good images, the teacher's first.
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

        The paper divides the learning rate by ten for the last 5 % of the student's; here it stays. A backbone, or a
        teacher from a file, need not be taught: the first stage falls away.
        """
        if protocol == "paper":
            paper = partial(Training, learning_rate=1e-4, weight_decay=1e-5, keep="last")
            teacher, student = paper(stage="teacher", steps=60_000, batch_size=16), paper(steps=70_000, batch_size=1)
        else:
            fast = partial(Training, learning_rate=1e-3, schedule="cosine", keep="last")
            teacher, student = fast(stage="teacher", steps=300, batch_size=16), fast(steps=600, batch_size=4)
        student = dataclasses.replace(student, stage="student")
        taught = self.config.teacher == "backbone" or self.config.teacher_weights
        return (student,) if taught else (teacher, student)

    def learner(self, stage: str) -> Learner:
        """Return the teacher with what it learns from, or student and autoencoder."""
        if stage == "teacher":
            return Part(self.teacher, partial(self._teacher_loss, self._source()))
        return Part(nn.ModuleList([self.student, self.autoencoder]), self.loss)

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Learn the units of what the teacher learns, or of what it teaches, from the training images."""
        torch.manual_seed(seed)
        with torch.no_grad():
            if stage == "teacher":
                source = self._source()
                pieces = (varied(batch, self.config.image_size) for batch in batches(pixels, self.device))
                self.described.fit(self._features(source, piece) for piece in pieces)
                return
            if isinstance(self.teacher, Backbone):
                self.teacher.load(self.config.weights)
                self.teacher.to(self.device)
            elif self.config.teacher_weights:
                fill_in_order(self.teacher, self.config.teacher_weights)
            self.target.fit(self._taught(batch) for batch in batches(pixels, self.device))

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the student's and the autoencoder's loss (Algorithm 1)."""
        wanted, said = self._answers(images)
        loss = hardest((said[:, : self.config.channels] - wanted).square())
        if self.config.penalty == "varied":
            strange = self.student(_normalised(varied(images, self.config.image_size)))
            loss = loss + strange[:, : self.config.channels].float().square().mean()
        if self.config.jitter:
            images = jittered(images)
            wanted, said = self._answers(images)
        rebuilt = self._rebuilt(images, wanted)
        loss = loss + (rebuilt - wanted).square().mean()
        return loss + (said[:, self.config.channels :] - rebuilt).square().mean()

    def maps(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2 down across"]:
        """Return the student's mean squared difference from the teacher, and from the autoencoder."""
        wanted, said = self._answers(images)
        first, second = torch.split(said, self.config.channels, 1)
        rebuilt = self._rebuilt(images, wanted)
        return torch.stack([(first - wanted).square().mean(1), (second - rebuilt).square().mean(1)], 1)

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Measure the quantiles of both maps on good images that the student has not seen."""
        del training
        with torch.no_grad():
            maps = torch.cat([self.maps(batch).cpu() for batch in batches(held_out, self.device)])
        values = maps.transpose(0, 1).flatten(1).numpy()
        for quantile, buffer in ((LOW, self.low), (HIGH, self.high)):
            buffer.copy_(torch.from_numpy(np.quantile(values, quantile, axis=1)))

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the root of the map: the mean of both, each in units of its quantiles.

        The paper first takes the lower quantile away, the same number everywhere; without that no value is negative.
        """
        scale = HIGH_AT / (self.high - self.low).clamp_min(1e-12)
        joined = (self.maps(images) * scale[:, None, None]).mean(1, keepdim=True)
        whole = F.pad(joined, (RIM,) * 4, mode="replicate")
        return Residuals(F.interpolate(whole, images.shape[-2:], mode="bilinear").sqrt())

    def _source(self) -> Backbone:
        config = self.config
        return trained_backbone(config.backbone, config.taps, config.weights, self.device)

    def _teacher_loss(self, source: Backbone, images: Tensor) -> Tensor:
        pieces = varied(images, self.config.image_size)
        with torch.no_grad():
            wanted = self.described(self._features(source, pieces))
        difference: Tensor = self.teacher(_normalised(pieces)).float() - wanted
        return difference.square().mean()

    def _features(self, source: Backbone, images: Tensor) -> Tensor:
        """Return the features wanted of the teacher, where it has places: a quarter of the image less the rim."""
        size = tuple(ENLARGEMENT * side for side in images.shape[-2:])
        maps = [tap.float() for tap in source(F.interpolate(images, size, mode="bilinear"))]
        finest = max(maps, key=lambda tap: tap.shape[2])
        joined = neighbourhoods(maps, (finest.shape[2], finest.shape[3]))
        if joined.shape[1] != self.config.channels:
            places = joined.permute(0, 2, 3, 1)
            pooled = F.adaptive_avg_pool1d(places.flatten(1, 2), self.config.channels)
            joined = pooled.reshape(*places.shape[:3], -1).permute(0, 3, 1, 2)
        height, width = (side // 4 for side in images.shape[-2:])
        return F.interpolate(joined, (height, width), mode="bilinear")[..., RIM:-RIM, RIM:-RIM]

    def _answers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the teacher says, standardised, and what both halves of the student say."""
        with torch.no_grad():
            wanted = self.target(self._taught(images))
        return wanted, self.student(_normalised(images)).float()

    def _taught(self, images: Tensor) -> Tensor:
        if isinstance(self.teacher, Backbone):
            return self._features(self.teacher, images)
        taught: Tensor = self.teacher(_normalised(images))
        return taught

    def _rebuilt(self, images: Tensor, wanted: Tensor) -> Tensor:
        rebuilt: Tensor = self.autoencoder(_normalised(images), (wanted.shape[2], wanted.shape[3])).float()
        return rebuilt


def hardest(errors: Float[Tensor, "batch channels down across"]) -> Float[Tensor, ""]:
    """Return the mean, over an image, of the errors at or above their quantile 0.999; its mean over the batch."""
    flat = errors.flatten(1)
    count = flat.shape[1] - math.ceil(HARD * (flat.shape[1] - 1))
    return flat.topk(count, 1).values.mean()


def jittered(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Return each image with its brightness, its contrast or its saturation changed by up to a fifth, by chance."""
    count, device = len(images), images.device
    grey = images.mean(1, keepdim=True)
    stays = torch.stack(
        [torch.zeros_like(images), grey.mean((2, 3), keepdim=True).expand_as(images), grey.expand_as(images)]
    )
    kept = stays[torch.randint(3, (count,), device=device), torch.arange(count, device=device)]
    factor = 0.8 + 0.4 * torch.rand(count, 1, 1, 1, device=device)
    return (kept + factor * (images - kept)).clamp(0, 1)


def _normalised(images: Tensor) -> Tensor:
    mean, deviation = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return (images - mean) / deviation
