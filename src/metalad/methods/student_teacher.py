"""Uninformed Students (Bergmann, Fauser, Sattlegger & Steger 2020, arXiv:1911.02357).

Several students are trained to predict the features of a frozen teacher on good images. In anomalous regions, their
error and their variance are high; the anomaly map is the sum of both. The teacher is a network trained on ImageNet or,
as in the paper, a small network of patch descriptors distilled from it.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, GradientDetector, Protocol
from metalad.detectors.distillation import PartLearner, fit_standardization, random_variants, trained_backbone
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone
from metalad.nn.networks import TAPPED_STAGES, HookPoint, Tap, channels_of
from metalad.nn.patch_network import NETWORKS, SLOPE, PatchNetwork
from metalad.nn.pixels import Pixels, batches
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Learner, Training

ENLARGEMENT = 2
"""Factor by which a patch is enlarged before the network trained on ImageNet."""


@dataclass(frozen=True, kw_only=True)
class StudentTeacherConfig(DetectorConfig):
    """Settings; the paper has teacher=distilled, scales=17,33,65, width=128, dense=true."""

    image_size: tuple[int, int] = setting((256, 256), "height and width that images are resized to, in pixels")
    teacher: Literal["backbone", "distilled"] = setting(
        "backbone", "the backbone itself, or patch networks distilled from it"
    )
    backbone: str = setting("lite0", "network trained on ImageNet; all but lite0-2 need weights=PATH")
    weights: str | None = setting(None, "weights file of the backbone; none: the installed weights")
    taps: tuple[Tap, ...] = setting(
        ("s8", "s16"), "strides of its maps that are used; distilled: their means over a patch"
    )
    students: int = setting(3, "students per teacher")
    width: int = setting(32, "channels of the first layer of students and distilled teachers; paper: 128")
    scales: tuple[int, ...] = setting((33,), "distilled: sides of the patches in pixels: 17, 33 or 65")
    descriptor: int = setting(128, "distilled: length of a patch descriptor")
    patches: int = setting(64, "distilled: patches per training step of the teacher, at least one per image")
    dense: bool = setting(False, "distilled: compute descriptors at stride 1, not 4 (33) or 8 (65)")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if not self.scales or len(set(self.scales)) < len(self.scales) or not set(self.scales) <= set(NETWORKS):
            raise ConfigError(f"scales is {','.join(map(str, self.scales))}; use each of 17, 33, 65 at most once")
        if min(self.width, self.descriptor, self.students, self.patches) < 1:
            raise ConfigError("width, descriptor, students and patches must be at least 1")
        min_side = 2 * max((int(tap[1:]) for tap in self.taps), default=0)
        if self.teacher == "distilled":
            min_side = max(self.scales) // 2 + 1
        if min(self.image_size) < min_side:
            raise ConfigError(
                f"image_size {self.image_size} is too small; each side must be at least {min_side} pixels"
            )


class PyramidStudent(nn.Module):
    """A student of a backbone: predicts the maps of the backbone's taps from the image."""

    def __init__(self, width: int, channels: Mapping[HookPoint, int]) -> None:
        super().__init__()
        self.stages, self.heads = nn.ModuleList(), nn.ModuleDict()
        inputs = 3
        for tap in TAPPED_STAGES:
            kernel, stride = (3, 2) if self.stages else (7, 4)
            first, second = nn.Conv2d(inputs, width, kernel, stride, kernel // 2), nn.Conv2d(width, width, 3, 1, 1)
            self.stages.append(nn.Sequential(first, *_activation(width), second, *_activation(width)))
            if tap in channels:
                self.heads[tap] = nn.Conv2d(width, channels[tap], 1)
            if len(self.heads) == len(channels):
                break
            inputs, width = width, 2 * width

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, Float[Tensor, "batch _ _ _"]]:
        """Return the map of each tap; sides are rounded up."""
        predicted, maps = {}, 2 * images - 1
        for tap, stage in zip(TAPPED_STAGES, self.stages, strict=False):
            maps = stage(maps)
            if tap in self.heads:
                predicted[str(tap)] = self.heads[tap](maps)
        return predicted


class FeaturesAndPredictions(NamedTuple):
    """Standardized teacher features and student predictions at one scale, with a stride in pixels."""

    target: Float[Tensor, "batch channels down across"]
    predicted: Float[Tensor, "students batch channels down across"]
    stride: int


class BackboneEnsemble(nn.Module):
    """A frozen backbone as teacher; each student predicts all taps. A tap is a scale."""

    def __init__(self, config: StudentTeacherConfig) -> None:
        super().__init__()
        self.teacher = Backbone(config.backbone, config.taps)
        all_channels = channels_of(self.teacher.network)
        channels: dict[HookPoint, int] = {tap: all_channels[tap] for tap in config.taps}
        self.weights, self.scales = config.weights, len(channels)
        self.targets = nn.ModuleList(Standardization(count) for count in channels.values())
        self.students = nn.ModuleList(PyramidStudent(config.width, channels) for _ in range(config.students))

    def prepare(self, pixels: Pixels, device: torch.device) -> None:
        """Load the teacher, and fit the standardization of its features."""
        self.teacher.load(self.weights)
        self.teacher.to(device)
        fit_standardization(self.targets, self.teacher, pixels, device)

    def features_and_predictions(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Iterator[FeaturesAndPredictions]:
        """Yield features and predictions of each tap; predictions are cropped to the size of the features."""
        with torch.no_grad():
            targets = [standardize(maps) for standardize, maps in zip(self.targets, self.teacher(images), strict=True)]
        students = [student(images) for student in self.students]
        for tap, target in zip(self.teacher.taps, targets, strict=True):
            down, across = target.shape[-2:]
            predicted = torch.stack([each[tap][..., :down, :across].float() for each in students])
            yield FeaturesAndPredictions(target, predicted, int(tap[1:]))


class PatchEnsemble(nn.Module):
    """The paper's ensemble: for each patch size, a teacher distilled from a backbone, and its students."""

    def __init__(self, config: StudentTeacherConfig) -> None:
        super().__init__()
        self.config, self.sides = config, config.scales
        self.scales = len(self.sides)
        all_channels = channels_of(Backbone(config.backbone, config.taps).network)
        feature_count = sum(all_channels[tap] for tap in config.taps)
        networks = [partial(PatchNetwork, side, config.width, config.descriptor) for side in self.sides]
        self.teachers = nn.ModuleList(network() for network in networks)
        self.decoders = nn.ModuleList(nn.Linear(config.descriptor, feature_count) for _ in self.sides)
        self.described = Standardization(feature_count)
        self.targets = nn.ModuleList(Standardization(config.descriptor) for _ in self.sides)
        self.students = nn.ModuleList(nn.ModuleList(network() for _ in range(config.students)) for network in networks)

    def source(self, device: torch.device) -> Backbone:
        """Return the backbone that the teachers are distilled from; it is not in checkpoints and model files."""
        return trained_backbone(self.config.backbone, self.config.taps, self.config.weights, device)

    def prepare_teachers(self, pixels: Pixels, device: torch.device) -> None:
        """Fit the standardization of the teachers' targets."""
        source = self.source(device)
        crops = (random_variants(batch, (side,) * 2) for side in self.sides for batch in batches(pixels, device))
        self.described.fit(_patch_features(source, patches) for patches in crops)

    def teachers_loss(self, source: Backbone, images: Tensor) -> Tensor:
        """Return the loss of all teachers: knowledge distillation plus compactness (eq. 1 and 4)."""
        losses = []
        for side, teacher, decoder in zip(self.sides, self.teachers, self.decoders, strict=True):
            patches = random_variants(images, (side, side), copies=math.ceil(self.config.patches / len(images)))
            with torch.no_grad():
                target = self.described(_patch_features(source, patches)).flatten(1)
            descriptors = teacher(patches).flatten(1)
            knowledge = (decoder(descriptors) - target).square().mean()
            losses.append(knowledge + compactness(descriptors))
        return torch.stack(losses).mean()

    def prepare(self, pixels: Pixels, device: torch.device) -> None:
        """Fit the standardization of the teachers' descriptors."""
        for target, teacher in zip(self.targets, self.teachers, strict=True):
            # One batch at a time: dense descriptors of an image take tens of megabytes.
            cast(Standardization, target).fit(self._descriptors(teacher, batch) for batch in batches(pixels, device))

    def features_and_predictions(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Iterator[FeaturesAndPredictions]:
        """Yield features and predictions of each patch size."""
        with torch.no_grad():
            pairs = zip(self.targets, self.teachers, strict=True)
            targets = [standardize(self._descriptors(teacher, images)) for standardize, teacher in pairs]
        for target, network, students in zip(targets, self.teachers, self.students, strict=True):
            networks = cast(list[PatchNetwork], list(students.children()))
            predicted = torch.stack([student.around(images, dense=self.config.dense).float() for student in networks])
            yield FeaturesAndPredictions(
                target, predicted, 1 if self.config.dense else cast(PatchNetwork, network).stride
            )

    def _descriptors(self, teacher: nn.Module, images: Tensor) -> Tensor:
        return cast(PatchNetwork, teacher).around(images, dense=self.config.dense)


class StudentTeacher(GradientDetector):
    """Uninformed Students: teachers, several students of each, and the scales of their errors.

    units: [scales, 2], the standard deviations of error and variance over the pixels of held-out good images.
    """

    name = "student_teacher"
    config: StudentTeacherConfig
    units: Tensor

    def __init__(self, config: StudentTeacherConfig) -> None:
        super().__init__(config)
        self.ensemble = PatchEnsemble(config) if config.teacher == "distilled" else BackboneEnsemble(config)
        self.register_buffer("units", torch.ones(self.ensemble.scales, 2))

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the paper's plan, 50,000 steps of 64 patches and 100 epochs of single images; or a small part of it.

        With a backbone as teacher, the first stage is omitted.
        """
        if protocol == "paper":
            teacher = Training(stage="teacher", steps=50_000, learning_rate=2e-4, weight_decay=1e-5, keep="last")
            students = Training(max_epochs=100, batch_size=1, weight_decay=1e-5, keep="last")
        else:
            fast = partial(Training, schedule="cosine", keep="last")
            teacher = fast(stage="teacher", steps=400, batch_size=64, learning_rate=2e-3)
            students = fast(steps=400, batch_size=4, learning_rate=1e-3, whole_batches=True)
        students = dataclasses.replace(students, stage="students")
        return (teacher, students) if self.config.teacher == "distilled" else (students,)

    def learner(self, stage: str) -> Learner:
        """Return the teachers with the source of their targets, or the students."""
        ensemble = self.ensemble
        if stage == "teacher" and isinstance(ensemble, PatchEnsemble):
            teachers = nn.ModuleList([ensemble.teachers, ensemble.decoders])
            return PartLearner(teachers, partial(ensemble.teachers_loss, ensemble.source(self.device)))
        return PartLearner(ensemble.students, self.loss)

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Fit the standardization of the teachers' targets, or of their output, on the training images."""
        torch.manual_seed(seed)
        with torch.no_grad():
            if stage == "teacher" and isinstance(self.ensemble, PatchEnsemble):
                self.ensemble.prepare_teachers(pixels, self.device)
            else:
                self.ensemble.prepare(pixels, self.device)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the students' squared distance from the teacher (eq. 6), averaged over positions, students, scales."""
        losses = [
            (predicted - target).square().sum(2).mean()
            for target, predicted, _ in self.ensemble.features_and_predictions(images)
        ]
        return torch.stack(losses).mean()

    def errors(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch scales 2 height width"]:
        """Return the squared error of the students' mean (eq. 8) and the students' variance (eq. 9)."""
        height, width = images.shape[-2:]
        scales = []
        for target, predicted, stride in self.ensemble.features_and_predictions(images):
            mean = predicted.mean(0)
            error = (mean - target).square().sum(1)
            variance = (predicted - mean).square().sum(2).mean(0)  # equals mean of squares minus square of mean
            scales.append(_upsampled(torch.stack([error, variance], 1), stride, (height, width)))
        return torch.stack(scales, 1)

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Compute the standard deviations of error and variance on held-out good images."""
        del training
        with torch.no_grad():
            maps = torch.cat([self.errors(batch).cpu() for batch in batches(held_out, self.device)])
        self.units.copy_(maps.double().std((0, 3, 4)).clamp_min(1e-12))

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the square root of the map: the sum of scaled error and variance, averaged over scales (eq. 10, 11).

        The paper also subtracts the means of both, constants; without the subtraction all values are at least 0.
        """
        maps = self.errors(images) / self.units[..., None, None]
        return Residuals(maps.sum(2).mean(1, keepdim=True).sqrt())


def compactness(descriptors: Float[Tensor, "patches descriptor"]) -> Float[Tensor, ""]:
    """Return the sum of squared correlations between different descriptor elements, divided by their number.

    The correlations are those over a batch. The paper sums the correlations themselves (eq. 4), which rewards negative
    correlations.
    """
    with torch.autocast(descriptors.device.type, enabled=False):
        centred = descriptors.float() - descriptors.float().mean(0)
        normalized = F.normalize(centred, dim=0)
        correlation = normalized.T @ normalized
        return (correlation.square().sum() - correlation.diagonal().square().sum()) / len(correlation)


def _patch_features(source: Backbone, patches: Tensor) -> Tensor:
    enlarged = F.interpolate(patches, scale_factor=float(ENLARGEMENT), mode="bilinear")
    means: list[Tensor] = [maps.float().mean((2, 3), keepdim=True) for maps in source(enlarged)]
    return torch.cat(means, 1)


def _upsampled(maps: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Return the maps upsampled to `size` by the stride; the far borders are padded (replicate) or cropped."""
    upsampled = maps if stride == 1 else F.interpolate(maps, scale_factor=float(stride), mode="bilinear")
    missing = [max(0, side - actual) for side, actual in zip(size, upsampled.shape[-2:], strict=True)]
    return F.pad(upsampled, (0, missing[1], 0, missing[0]), mode="replicate")[..., : size[0], : size[1]]


def _activation(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.LeakyReLU(SLOPE)
