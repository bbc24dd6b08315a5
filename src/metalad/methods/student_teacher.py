"""Uninformed Students (Bergmann, Fauser, Sattlegger & Steger 2020, arXiv:1911.02357).

A teacher describes the parts of an image. Students learn to describe those of good images as the teacher does. Where
an image is new to them, they are wrong, and each in its own way. The teacher is a network trained on ImageNet, or, as
in the paper, a small one that learns from it to describe patches.
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
from metalad.detectors.distillation import Part, fit_standardization, trained_backbone, varied
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone
from metalad.nn.networks import TAPPED_STAGES, Place, Tap, channels_of
from metalad.nn.patch_network import NETWORKS, SLOPE, PatchNetwork
from metalad.nn.pixels import Pixels, batches
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Learner, Training

ENLARGEMENT = 2
"""Times that a patch is enlarged before the network trained on ImageNet sees it."""


@dataclass(frozen=True, kw_only=True)
class StudentTeacherConfig(DetectorConfig):
    """Settings; the paper's are teacher=distilled, scales=17,33,65, width=128, dense=true."""

    image_size: tuple[int, int] = setting((256, 256), "height and width that images are resized to, in pixels")
    teacher: Literal["backbone", "distilled"] = setting(
        "backbone", "the backbone itself, or patch networks that learn from it"
    )
    backbone: str = setting("lite0", "network trained on ImageNet; but for lite0-2, name its weights too")
    weights: str | None = setting(None, "weights file of the backbone; none: those that are installed")
    taps: tuple[Tap, ...] = setting(("s8", "s16"), "where its features are taken; distilled: their mean over a patch")
    students: int = setting(3, "students of a teacher")
    width: int = setting(32, "channels of a student's first layer, and of a distilled teacher's; the paper takes 128")
    scales: tuple[int, ...] = setting((33,), "distilled: sides of the patches described, in pixels: 17, 33 or 65")
    descriptor: int = setting(128, "distilled: numbers that describe a patch")
    patches: int = setting(64, "distilled: patches in a step of the teacher, at least one an image")
    dense: bool = setting(False, "distilled: describe the patch around every pixel, not every 4th (33) or 8th (65)")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if not self.scales or len(set(self.scales)) < len(self.scales) or not set(self.scales) <= set(NETWORKS):
            raise ConfigError(f"scales are {','.join(map(str, self.scales))}; take each of 17, 33, 65 at most once")
        if min(self.width, self.descriptor, self.students, self.patches) < 1:
            raise ConfigError("width, descriptor, students and patches must be at least 1")
        least = 2 * max((int(tap[1:]) for tap in self.taps), default=0)
        if self.teacher == "distilled":
            least = max(self.scales) // 2 + 1
        if min(self.image_size) < least:
            raise ConfigError(f"image_size {self.image_size} is too small; take {least} pixels a side or more")


class Pyramid(nn.Module):
    """A student of a backbone: looks at the image alone, and says what the backbone would say at its taps."""

    def __init__(self, width: int, channels: Mapping[Place, int]) -> None:
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
        """Return the map of each tap; a side is rounded up."""
        said, maps = {}, 2 * images - 1
        for tap, stage in zip(TAPPED_STAGES, self.stages, strict=False):
            maps = stage(maps)
            if tap in self.heads:
                said[str(tap)] = self.heads[tap](maps)
        return said


class Answers(NamedTuple):
    """What teacher and students say at one scale, one place every `stride` pixels; the teacher's is standardised."""

    wanted: Float[Tensor, "batch channels down across"]
    said: Float[Tensor, "students batch channels down across"]
    stride: int


class BackboneSchool(nn.Module):
    """A frozen backbone as the teacher; each student says what it says at all taps, and a tap is a scale."""

    def __init__(self, config: StudentTeacherConfig) -> None:
        super().__init__()
        self.teacher = Backbone(config.backbone, config.taps)
        found = channels_of(self.teacher.network)
        channels: dict[Place, int] = {tap: found[tap] for tap in config.taps}
        self.weights, self.scales = config.weights, len(channels)
        self.targets = nn.ModuleList(Standardization(count) for count in channels.values())
        self.students = nn.ModuleList(Pyramid(config.width, channels) for _ in range(config.students))

    def prepare(self, pixels: Pixels, device: torch.device) -> None:
        """Load the teacher, and learn the units of what it says."""
        self.teacher.load(self.weights)
        self.teacher.to(device)
        fit_standardization(self.targets, self.teacher, pixels, device)

    def answers(self, images: Float[Tensor, "batch 3 height width"]) -> Iterator[Answers]:
        """Yield what is said at each tap; a place that the backbone rounds away is left out."""
        with torch.no_grad():
            known = [target(maps) for target, maps in zip(self.targets, self.teacher(images), strict=True)]
        students = [student(images) for student in self.students]
        for tap, wanted in zip(self.teacher.taps, known, strict=True):
            down, across = wanted.shape[-2:]
            said = torch.stack([each[tap][..., :down, :across].float() for each in students])
            yield Answers(wanted, said, int(tap[1:]))


class PatchSchool(nn.Module):
    """The paper's: for each side of patches a teacher that has learnt from a backbone, and its students."""

    def __init__(self, config: StudentTeacherConfig) -> None:
        super().__init__()
        self.config, self.sides = config, config.scales
        self.scales = len(self.sides)
        found = channels_of(Backbone(config.backbone, config.taps).network)
        described = sum(found[tap] for tap in config.taps)
        networks = [partial(PatchNetwork, side, config.width, config.descriptor) for side in self.sides]
        self.teachers = nn.ModuleList(network() for network in networks)
        self.decoders = nn.ModuleList(nn.Linear(config.descriptor, described) for _ in self.sides)
        self.described = Standardization(described)
        self.targets = nn.ModuleList(Standardization(config.descriptor) for _ in self.sides)
        self.students = nn.ModuleList(nn.ModuleList(network() for _ in range(config.students)) for network in networks)

    def source(self, device: torch.device) -> Backbone:
        """Return the network that the teachers learn from; neither checkpoint nor model file holds it."""
        return trained_backbone(self.config.backbone, self.config.taps, self.config.weights, device)

    def prepare_teachers(self, pixels: Pixels, device: torch.device) -> None:
        """Learn the units of what the teachers learn."""
        source = self.source(device)
        pieces = (varied(batch, (side,) * 2) for side in self.sides for batch in batches(pixels, device))
        self.described.fit(_described(source, patches) for patches in pieces)

    def teachers_loss(self, source: Backbone, images: Tensor) -> Tensor:
        """Return the loss of all teachers: that of knowledge and that of compactness (eq. 1 and 4)."""
        losses = []
        for side, teacher, decoder in zip(self.sides, self.teachers, self.decoders, strict=True):
            patches = varied(images, (side, side), copies=math.ceil(self.config.patches / len(images)))
            with torch.no_grad():
                wanted = self.described(_described(source, patches)).flatten(1)
            descriptors = teacher(patches).flatten(1)
            knowledge = (decoder(descriptors) - wanted).square().mean()
            losses.append(knowledge + compactness(descriptors))
        return torch.stack(losses).mean()

    def prepare(self, pixels: Pixels, device: torch.device) -> None:
        """Learn the units of what the teachers say."""
        for target, teacher in zip(self.targets, self.teachers, strict=True):
            # One teacher at a time, and nothing kept: densely described, an image takes tens of megabytes.
            cast(Standardization, target).fit(self._taught(teacher, batch) for batch in batches(pixels, device))

    def answers(self, images: Float[Tensor, "batch 3 height width"]) -> Iterator[Answers]:
        """Yield what is said of the patches of each side."""
        with torch.no_grad():
            pairs = zip(self.targets, self.teachers, strict=True)
            known = [target(self._taught(teacher, images)) for target, teacher in pairs]
        for wanted, network, students in zip(known, self.teachers, self.students, strict=True):
            pupils = cast(list[PatchNetwork], list(students.children()))
            said = torch.stack([pupil.around(images, dense=self.config.dense).float() for pupil in pupils])
            yield Answers(wanted, said, 1 if self.config.dense else cast(PatchNetwork, network).stride)

    def _taught(self, teacher: nn.Module, images: Tensor) -> Tensor:
        return cast(PatchNetwork, teacher).around(images, dense=self.config.dense)


class StudentTeacher(GradientDetector):
    """Uninformed Students: teachers and several students of each, and what makes their errors comparable.

    units: of each scale, the standard deviation of the error, and of the spread, over the pixels of held-out good
        images.
    """

    name = "student_teacher"
    config: StudentTeacherConfig
    units: Tensor

    def __init__(self, config: StudentTeacherConfig) -> None:
        super().__init__(config)
        self.ensemble = PatchSchool(config) if config.teacher == "distilled" else BackboneSchool(config)
        self.register_buffer("units", torch.ones(self.ensemble.scales, 2))

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the paper's: 50,000 steps of 64 patches, then 100 epochs of single images; or a small part of it.

        A backbone need not be taught: the first stage falls away.
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
        """Return the teachers with what they learn from, or the students."""
        ensemble = self.ensemble
        if stage == "teacher" and isinstance(ensemble, PatchSchool):
            teachers = nn.ModuleList([ensemble.teachers, ensemble.decoders])
            return Part(teachers, partial(ensemble.teachers_loss, ensemble.source(self.device)))
        return Part(ensemble.students, self.loss)

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Learn the units of what the teachers learn, or of what they teach, from the training images."""
        torch.manual_seed(seed)
        with torch.no_grad():
            if stage == "teacher" and isinstance(self.ensemble, PatchSchool):
                self.ensemble.prepare_teachers(pixels, self.device)
            else:
                self.ensemble.prepare(pixels, self.device)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return each student's squared distance from the teacher (eq. 6), its mean over places, students, scales."""
        losses = [(said - wanted).square().sum(2).mean() for wanted, said, _ in self.ensemble.answers(images)]
        return torch.stack(losses).mean()

    def errors(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch scales 2 height width"]:
        """Return the squared error of the students' mean (eq. 8) and the spread of the students (eq. 9)."""
        height, width = images.shape[-2:]
        scales = []
        for wanted, said, stride in self.ensemble.answers(images):
            mean = said.mean(0)
            error = (mean - wanted).square().sum(1)
            spread = (said - mean).square().sum(2).mean(0)  # the mean square less the mean's square, exactly
            scales.append(_whole(torch.stack([error, spread], 1), stride, (height, width)))
        return torch.stack(scales, 1)

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Measure error and spread on good images that no student has seen."""
        del training
        with torch.no_grad():
            maps = torch.cat([self.errors(batch).cpu() for batch in batches(held_out, self.device)])
        self.units.copy_(maps.double().std((0, 3, 4)).clamp_min(1e-12))

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the root of the map: error and spread, each in its units, their sum's mean over scales (eq. 10, 11).

        The paper first takes the means of both away, the same number everywhere; without that no value is negative.
        """
        maps = self.errors(images) / self.units[..., None, None]
        return Residuals(maps.sum(2).mean(1, keepdim=True).sqrt())


def compactness(descriptors: Float[Tensor, "patches descriptor"]) -> Float[Tensor, ""]:
    """Return the squared correlation of each pair of a descriptor's numbers over a batch, their sum over the second.

    The paper adds up the correlations themselves (eq. 4), which rewards negative ones.
    """
    with torch.autocast(descriptors.device.type, enabled=False):
        centred = descriptors.float() - descriptors.float().mean(0)
        unit = F.normalize(centred, dim=0)
        correlation = unit.T @ unit
        return (correlation.square().sum() - correlation.diagonal().square().sum()) / len(correlation)


def _described(source: Backbone, patches: Tensor) -> Tensor:
    large = F.interpolate(patches, scale_factor=float(ENLARGEMENT), mode="bilinear")
    means: list[Tensor] = [maps.float().mean((2, 3), keepdim=True) for maps in source(large)]
    return torch.cat(means, 1)


def _whole(maps: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Return the maps pixel by pixel; what the last places lie short of, or reach beyond, is filled up or cut off."""
    fine = maps if stride == 1 else F.interpolate(maps, scale_factor=float(stride), mode="bilinear")
    short = [max(0, side - found) for side, found in zip(size, fine.shape[-2:], strict=True)]
    return F.pad(fine, (0, short[1], 0, short[0]), mode="replicate")[..., : size[0], : size[1]]


def _activation(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), nn.LeakyReLU(SLOPE)
