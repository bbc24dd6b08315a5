"""SuperSimpleNet (Rolih, Fučka & Skočaj 2024, arXiv:2408.03143): synthetic anomalies in the space of features.

Features of a frozen backbone are mapped by a linear adaptor. Gaussian noise is added to them within random regions
(thresholded Perlin noise). A segmentation head is trained to find the regions, and a classification head to decide
whether an image has any. The first gives the anomaly map, the second the image score. Labelled defects, if there are
some, are learnt, too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metalad.data.defects import LabelledDefects, read_defects
from metalad.detectors.base import DetectorConfig, GradientDetector, Protocol
from metalad.detectors.distillation import CachedFeatures, PartLearner, fit_standardization
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone
from metalad.nn.networks import Tap, channels_of
from metalad.nn.perlin import random_perlin_noise
from metalad.nn.pixels import Pixels, batches, to_batch
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import auto_size, setting
from metalad.training.loop import Learner, Objective, Training

MARGIN = 0.5
"""Logits of good positions below minus this, and of anomalous ones above it, add nothing to the truncated L1 loss."""
FOCUS = 4
"""Exponent of the focal loss."""
WITHOUT_ANOMALY = 0.5
"""Fraction of the images that get no synthetic anomaly."""
ADAPTOR_RATE = 0.5
"""Learning rate of the adaptor, relative to that of the heads."""
SLOPE = 0.2
"""Of the leaky ReLU in the segmentation head."""


@dataclass(frozen=True, kw_only=True)
class SuperSimpleNetConfig(DetectorConfig):
    """Settings of SuperSimpleNet; the paper has backbone=wide_resnet50_2, standardized=false, noise=0.015,
    upsampling=2, segmentation_width=1024 and classification_width=128."""

    image_size: tuple[int, int] = auto_size(256, 32)
    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "own", "image score: own: the classification head; or the map's maximum, its mean, the mean of its highest 1 %"
    )
    backbone: str = setting("lite0", "network trained on ImageNet; all but lite0-2 need weights=PATH")
    weights: str | None = setting(None, "weights file of the backbone; none: the installed weights")
    taps: tuple[Tap, ...] = setting(("s8", "s16"), "strides of the feature maps that are used")
    standardized: bool = setting(True, "standardize the backbone's channels to mean 0 and standard deviation 1")
    upsampling: int = setting(1, "factor by which the finest map is enlarged; paper: 2")
    noise: float = setting(0.3, "standard deviation of the noise that makes synthetic anomalies; paper: 0.015")
    perlin_threshold: float = setting(0.2, "Perlin noise above this is a synthetic anomaly; paper: 0.2 (MVTec), 0.6")
    segmentation_width: int = setting(128, "hidden channels of the segmentation head; paper: 1024")
    defects: str | None = setting(
        None,
        "labelled defects to learn from, too: a folder of images, or a category with test images; none: without",
    )
    classification_width: int = setting(16, "channels of the classification head's convolution; paper: 128")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if min(self.upsampling, self.segmentation_width, self.classification_width) < 1:
            raise ConfigError("upsampling, segmentation_width and classification_width must be at least 1")
        if not 0 < self.noise < float("inf"):
            raise ConfigError(f"noise is {self.noise}; it must be positive")
        if not -1 <= self.perlin_threshold < 1:
            raise ConfigError(f"perlin_threshold is {self.perlin_threshold}; it must be between -1 and 1")


class Labelled(NamedTuple):
    """Features, and what is anomalous in them.

    features: adapted features. masks: anomalous positions. labels: anomalous images. located: images whose masks are
    known; of another image only the label is.
    """

    features: Float[Tensor, "batch channels down across"]
    masks: Bool[Tensor, "batch down across"]
    labels: Bool[Tensor, " batch"]
    located: Bool[Tensor, " batch"]

    @classmethod
    def good(cls, features: Float[Tensor, "batch channels down across"]) -> "Labelled":
        """Return the features of good images."""
        count, _, down, across = features.shape
        none = features.new_zeros(count, dtype=torch.bool)
        return cls(features, features.new_zeros(count, down, across, dtype=torch.bool), none, ~none)

    @classmethod
    def defective(
        cls,
        features: Float[Tensor, "batch channels down across"],
        masks: Bool[Tensor, "batch height width"],
        located: Bool[Tensor, " batch"],
    ) -> "Labelled":
        """Return the features of defective images; `masks` are of their pixels.

        A defect that is smaller than a position has a label, but no position.
        """
        small = F.interpolate(masks[:, None].float(), features.shape[-2:], mode="bilinear")[:, 0] >= 0.5
        return cls(features, small, torch.ones_like(located), located & small.flatten(1).any(1))

    def joined(self, other: "Labelled") -> "Labelled":
        """Return the images of both."""
        return Labelled(*(torch.cat(parts) for parts in zip(self, other, strict=True)))


class Heads(nn.Module):
    """The segmentation head and the classification head."""

    def __init__(self, channels: int, segmentation_width: int, classification_width: int) -> None:
        super().__init__()
        self.segmentation = nn.Sequential(
            nn.Conv2d(channels, segmentation_width, 1),
            nn.BatchNorm2d(segmentation_width),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(segmentation_width, 1, 1, bias=False),
        )
        self.classification = nn.Sequential(
            nn.Conv2d(channels + 1, classification_width, 5, padding="same"),
            nn.BatchNorm2d(classification_width),
            nn.ReLU(),
        )
        self.score = nn.Linear(2 * classification_width + 2, 1)

    def forward(
        self, features: Float[Tensor, "batch channels down across"], *, supervised: bool = False
    ) -> tuple[Float[Tensor, "batch down across"], Float[Tensor, " batch"]]:
        """Return the logit of each position, and of each image.

        supervised: whether the gradient of the image's logit passes through the positions' logits. With synthetic
            anomalies alone it is stopped, as in the paper.
        """
        maps = self.segmentation(features)
        used = maps if supervised else maps.detach()
        hidden = self.classification(torch.cat([features, used], 1))
        pooled = [pool for each in (hidden, used) for pool in (each.amax((2, 3)), each.mean((2, 3)))]
        return maps[:, 0].float(), self.score(torch.cat(pooled, 1))[:, 0].float()


class SuperSimpleNet(GradientDetector):
    """SuperSimpleNet: a frozen backbone, the adaptor of its features, and the two heads.

    With `defects`, each step takes half as many labelled defects as good images, drawn at random.

    lowest: the lowest logit of a position on held-out good images; the map counts from there.
    """

    name = "supersimplenet"
    has_own_score = True
    config: SuperSimpleNetConfig
    lowest: Tensor

    def __init__(self, config: SuperSimpleNetConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone, config.taps)
        counts = channels_of(self.backbone.network)
        channels = [counts[tap] for tap in config.taps]
        self.targets = nn.ModuleList(Standardization(count) for count in channels)
        self.adaptor = nn.Conv2d(sum(channels), sum(channels), 1)
        self.heads = Heads(sum(channels), config.segmentation_width, config.classification_width)
        for module in (self.adaptor, *self.heads.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(module.weight)
        self.register_buffer("lowest", torch.zeros(()))

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the 300 epochs of the paper, or fewer steps with a higher learning rate."""
        published = partial(
            Training, optimizer="adamw", weight_decay=1e-5, schedule="multistep", keep="last", whole_batches=True
        )
        if protocol == "paper":
            return (published(learning_rate=2e-4, batch_size=32, max_epochs=300),)
        return (published(learning_rate=1e-3, batch_size=16, steps=400),)

    def learner(self, stage: str) -> Learner:
        """Return adaptor and heads; the backbone's features of a training image are computed once."""
        del stage
        return _AdaptorAndHeads(self.adaptor, self.heads, partial(self._loss, CachedFeatures(self.backbone)))

    @cached_property
    def labelled_defects(self) -> LabelledDefects | None:
        """The labelled defects, read when they are first needed; None without the setting `defects`.

        Raises:
            DataError: they cannot be used.
            ImageError: one of them cannot be read.
        """
        folder = self.config.defects
        return None if folder is None else read_defects(Path(folder), self.config.framing)

    @property
    def further_hashes(self) -> tuple[str, ...]:
        """Of the labelled defects."""
        return () if self.labelled_defects is None else self.labelled_defects.hashes

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Load the backbone, and fit the standardization of its features on the training images."""
        del stage, seed
        self.backbone.load(self.config.weights)
        self.backbone.to(self.device)
        if self.config.standardized:
            fit_standardization(self.targets, self.backbone, pixels, self.device)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the loss of good images and their synthetic anomalies."""
        return self._loss(self.backbone, images)

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Compute the lowest logit on held-out good images."""
        del training
        with torch.no_grad():
            lowest = [self._logits(batch)[0].amin() for batch in batches(held_out, self.device)]
        self.lowest.copy_(torch.stack(lowest).amin())

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the square root of the upsampled logits above the lowest one, and the image score.

        The paper's map is the logit itself, and its score the sigmoid of the image's logit. The constant makes the map
        non-negative. The score is log(1 + exp(logit)), which has the same order and does not saturate.
        """
        maps, scores = self._logits(images)
        above = F.interpolate((maps - self.lowest)[:, None], images.shape[-2:], mode="bilinear").clamp_min(0)
        return Residuals(above.sqrt(), score=F.softplus(scores))

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits: tuple[Tensor, Tensor] = self.heads(self._adapted(self.backbone(images)))
        return logits

    def _adapted(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the adapted features: maps at the size of the finest times `upsampling`, averaged over 3×3."""
        standardized = [standardize(each) for standardize, each in zip(self.targets, maps, strict=True)]
        finest = max(standardized, key=lambda each: each.shape[2])
        size = [self.config.upsampling * side for side in finest.shape[-2:]]
        joined = torch.cat([F.interpolate(each, size, mode="bilinear") for each in standardized], 1)
        adapted: Tensor = self.adaptor(F.avg_pool2d(joined, 3, 1, 1))
        return adapted

    def _loss(self, backbone: Callable[[Tensor], Sequence[Tensor]], images: Tensor) -> Tensor:
        labelled = self._labelled(backbone, images)
        anomalous = with_synthetic_anomalies(labelled, self.config.noise, self.config.perlin_threshold)
        maps, scores = self.heads(anomalous.features, supervised=self.config.defects is not None)
        return anomaly_loss(maps, scores, anomalous)

    def _labelled(self, backbone: Callable[[Tensor], Sequence[Tensor]], images: Tensor) -> Labelled:
        """Return the features of good images and of some labelled defects."""
        defects = self.labelled_defects
        with torch.no_grad():
            maps = backbone(images)
        if defects is None:
            return Labelled.good(self._adapted(maps))
        chosen = torch.randint(len(defects), (math.ceil(len(images) / 2),)).numpy()
        with torch.no_grad():
            of_defects = backbone(to_batch(defects.pixels[chosen], images.device))
        good = Labelled.good(self._adapted(maps))
        masks, located = (torch.from_numpy(each[chosen]).to(images.device) for each in (defects.masks, defects.located))
        return good.joined(Labelled.defective(self._adapted(of_defects), masks, located))


class _AdaptorAndHeads(PartLearner):
    """Trains the adaptor with half the learning rate of the heads, as in the paper."""

    def __init__(self, adaptor: nn.Module, heads: nn.Module, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__(nn.ModuleList([adaptor, heads]), loss)
        self.rates = [ADAPTOR_RATE] * len(list(adaptor.parameters())) + [1.0] * len(list(heads.parameters()))

    def objectives(self) -> tuple[Objective, ...]:
        """Return the loss with the rate of each parameter."""
        return (Objective(self.loss, tuple(self.learning.parameters()), rates=tuple(self.rates)),)


def with_synthetic_anomalies(good: Labelled, deviation: float, perlin_threshold: float) -> Labelled:
    """Return every image twice, each with other synthetic anomalies, or with none (paper, 3.2).

    Noise is added where Perlin noise is above the threshold, in half of the copies. Real anomalies stay unchanged.
    """
    features, masks, labels, located = good.joined(good)
    noise = random_perlin_noise(len(features), (features.shape[2], features.shape[3])).to(features.device)
    selected = (torch.rand(len(features), 1, 1) >= WITHOUT_ANOMALY).to(features.device)
    regions = (noise > perlin_threshold) & selected & ~masks
    perturbed = features + regions[:, None] * deviation * torch.randn_like(features)
    return Labelled(perturbed, masks | regions, labels | regions.flatten(1).any(1), located)


def anomaly_loss(
    maps: Float[Tensor, "batch down across"], scores: Float[Tensor, " batch"], labelled: Labelled
) -> Float[Tensor, ""]:
    """Return truncated L1 plus focal loss of the positions, plus focal loss of the images (paper, 3.4).

    Positions of an image whose mask is not known have no part in it. maps, scores: logits.
    """
    maps, masks = maps[labelled.located], labelled.masks[labelled.located]
    # Each class is averaged by itself, so that few anomalous positions count as much as all others.
    parts = [(maps[~masks] + MARGIN).clamp_min(0), (MARGIN - maps[masks]).clamp_min(0)]
    truncated = torch.stack([part.sum() / max(1, part.numel()) for part in parts]).sum()
    return truncated + focal_loss(maps, masks) + focal_loss(scores, labelled.labels)


def focal_loss(logits: Float[Tensor, "*shape"], anomalous: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the mean cross entropy weighted by (1 - p)⁴, p the probability of the right class (Lin et al. 2017)."""
    entropy = F.binary_cross_entropy_with_logits(logits, anomalous.float(), reduction="none")
    return ((-torch.expm1(-entropy)) ** FOCUS * entropy).mean()
