"""Uninformed Students (Bergmann, Fauser, Sattlegger & Steger 2020, arXiv:1911.02357).

A teacher learns to describe small patches as a network trained on ImageNet does. Students learn to describe those of
good images as the teacher does. Where an image is new to them, they are wrong, and each in its own way.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.backbones import Backbone, BackboneName, Tap, channels_of
from metalad.calibration import Evidence
from metalad.detector import DetectorConfig, GradientDetector, Protocol
from metalad.distillation import Part, Standardised, batches, trained_backbone, varied
from metalad.errors import ConfigError
from metalad.gradient import Learner, Pixels, Training
from metalad.settings import setting

SLOPE = 0.005
ENLARGEMENT = 2
"""Times that a patch is enlarged before the network trained on ImageNet sees it."""

Layer = tuple[int, float, bool]
NETWORKS: dict[int, tuple[Layer, ...]] = {
    17: ((5, 1, False), (5, 2, False), (5, 2, False), (5, 0, False)),
    33: ((5, 1, True), (5, 2, True), (2, 2, False), (4, 0, False)),
    65: ((5, 1, True), (5, 1, True), (5, 1, True), (4, 2, False), (1, 0, False)),
}
"""Of each side of a patch, the convolutions: kernel, channels in widths (0: the descriptor's), whether pooled."""


@dataclass(frozen=True, kw_only=True)
class StudentTeacherConfig(DetectorConfig):
    """Settings of student and teacher; the paper's are image_size=256, scales=17,33,65, width=128, dense=true."""

    scales: tuple[int, ...] = setting((33,), "sides of the patches described, in pixels: 17, 33 or 65")
    width: int = setting(32, "channels of the first layer; the paper takes 128")
    descriptor: int = setting(128, "numbers that describe a patch")
    students: int = setting(3, "students of a teacher")
    patches: int = setting(64, "patches in a step of the teacher, at least one an image")
    dense: bool = setting(False, "describe the patch around every pixel, not every 4th (33) or 8th (65)")
    backbone: BackboneName = setting("lite0", "network the teacher learns from; but for lite0-2, name its weights too")
    weights: str | None = setting(None, "weights file of the backbone; none: those that are installed")
    tap: Tap = setting("s16", "where its features are taken; their mean over the patch describes it")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if not self.scales or len(set(self.scales)) < len(self.scales) or not set(self.scales) <= set(NETWORKS):
            raise ConfigError(f"scales are {','.join(map(str, self.scales))}; take each of 17, 33, 65 at most once")
        if min(self.width, self.descriptor, self.students, self.patches) < 1:
            raise ConfigError("width, descriptor, students and patches must be at least 1")
        if min(self.image_size) <= max(self.scales) // 2:
            raise ConfigError(f"image_size {self.image_size} is too small for patches of {max(self.scales)} pixels")


class PatchNetwork(nn.Module):
    """A network that describes patches of `side` pixels, one by one, or all of an image at once.

    field: pixels down and across that a descriptor depends on; poolings round the last of a patch's rows away.
    stride: pixels between patches, unless they are described densely.
    """

    def __init__(self, side: int, width: int, descriptor: int) -> None:
        super().__init__()
        channels = [3, *(int(width * factor) or descriptor for _, factor, _ in NETWORKS[side])]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel)
            for inputs, outputs, (kernel, _, _) in zip(channels[:-1], channels[1:], NETWORKS[side], strict=True)
        )
        self.pooled = [pooled for _, _, pooled in NETWORKS[side]]
        self.field = self.stride = 1
        for kernel, _, pooled in NETWORKS[side]:
            self.field += (kernel - 1 + pooled) * self.stride
            self.stride *= 2 if pooled else 1

    def forward(
        self, patches: Float[Tensor, "batch 3 height width"], *, dense: bool = False
    ) -> Float[Tensor, "batch descriptor down across"]:
        """Describe every patch that fits, one every `stride` pixels, or densely, one every pixel.

        Dense pooling does not skip; what comes after it looks at places further apart instead.
        """
        spread = 1
        maps = patches
        for index, (layer, pooled) in enumerate(zip(self.convolutions, self.pooled, strict=True)):
            maps = F.conv2d(maps, layer.get_parameter("weight"), layer.get_parameter("bias"), dilation=spread)
            if index + 1 < len(self.convolutions):
                maps = F.leaky_relu(maps, SLOPE)
            if pooled and dense:
                maps = F.max_pool2d(maps, 2, 1, dilation=spread)
                spread *= 2
            elif pooled:
                maps = F.max_pool2d(maps, 2)
        return maps

    def around(
        self, images: Float[Tensor, "batch 3 height width"], *, dense: bool
    ) -> Float[Tensor, "batch descriptor down across"]:
        """Describe the patches around every pixel, or around every square of `stride` pixels; the rim is mirrored."""
        stride = 1 if dense else self.stride
        before = (self.field - stride) // 2
        behind = [-side % stride + self.field - stride - before for side in images.shape[-2:]]
        described: Tensor = self(F.pad(images, (before, behind[1], before, behind[0]), mode="reflect"), dense=dense)
        return described


class Scale(nn.Module):
    """The teacher and the students of one side of patches, and what makes their errors comparable.

    units: the standard deviation of the error, and of the spread, over the pixels of held-out good images.
    """

    units: Tensor

    def __init__(self, side: int, config: StudentTeacherConfig, described: int) -> None:
        super().__init__()
        self.side = side
        self.teacher = PatchNetwork(side, config.width, config.descriptor)
        self.decoder = nn.Linear(config.descriptor, described)
        self.target = Standardised(config.descriptor)
        self.students = nn.ModuleList(
            PatchNetwork(side, config.width, config.descriptor) for _ in range(config.students)
        )
        self.register_buffer("units", torch.ones(2))

    def answers(
        self, images: Float[Tensor, "batch 3 height width"], *, dense: bool
    ) -> tuple[Float[Tensor, "batch descriptor down across"], Float[Tensor, "students batch descriptor down across"]]:
        """Return what the teacher says, standardised, and what each student says."""
        with torch.no_grad():
            wanted = self.target(self.teacher.around(images, dense=dense))
        return wanted, torch.stack(
            [cast(PatchNetwork, student).around(images, dense=dense).float() for student in self.students]
        )

    def errors(
        self, images: Float[Tensor, "batch 3 height width"], *, dense: bool
    ) -> Float[Tensor, "batch 2 height width"]:
        """Return the squared error of the students' mean (eq. 8) and the spread of the students (eq. 9)."""
        wanted, said = self.answers(images, dense=dense)
        mean = said.mean(0)
        error = (mean - wanted).square().sum(1)
        spread = (said - mean).square().sum(2).mean(0)  # the mean square less the mean's square, exactly
        maps = torch.stack([error, spread], 1)
        if dense or self.teacher.stride == 1:
            return maps
        fine = F.interpolate(maps, scale_factor=float(self.teacher.stride), mode="bilinear")
        return fine[..., : images.shape[-2], : images.shape[-1]]


class StudentTeacher(GradientDetector):
    """Uninformed Students: a teacher and several students for each side of patches."""

    name = "student_teacher"
    config: StudentTeacherConfig
    described: Standardised

    def __init__(self, config: StudentTeacherConfig) -> None:
        super().__init__(config)
        described = channels_of(Backbone(config.backbone, (config.tap,)).network)[config.tap]
        self.described = Standardised(described)
        self.parts = nn.ModuleList(Scale(side, config, described) for side in config.scales)

    def scales(self) -> list[Scale]:
        """Return the teachers with their students, one a side of patches."""
        return [part for part in self.parts if isinstance(part, Scale)]

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the paper's: 50,000 steps of 64 patches, then 100 epochs of single images; or a small part of it."""
        if protocol == "paper":
            return (
                Training(stage="teacher", steps=50_000, learning_rate=2e-4, weight_decay=1e-5, keep="last"),
                Training(stage="students", max_epochs=100, batch_size=1, weight_decay=1e-5, keep="last"),
            )
        fast = partial(Training, schedule="cosine", keep="last")
        return (
            fast(stage="teacher", steps=400, batch_size=64, learning_rate=2e-3),
            fast(stage="students", steps=400, batch_size=4, learning_rate=1e-3),
        )

    def learner(self, stage: str) -> Learner:
        """Return the teachers with what they learn from, or the students."""
        if stage == "teacher":
            teachers = nn.ModuleList(part for scale in self.scales() for part in (scale.teacher, scale.decoder))
            return Part(teachers, partial(self._teacher_loss, self._source()))
        return Part(nn.ModuleList(scale.students for scale in self.scales()), self.loss)

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Learn the units of what the teachers learn, or of what they teach, from the training images."""
        torch.manual_seed(seed)
        with torch.no_grad():
            if stage == "teacher":
                source = self._source()
                sides = [scale.side for scale in self.scales()]
                pieces = (varied(batch, (side,) * 2) for side in sides for batch in batches(pixels, self.device))
                self.described.learn(_described(source, patches) for patches in pieces)
                return
            for scale in self.scales():
                scale.target.learn(
                    scale.teacher.around(batch, dense=self.config.dense) for batch in batches(pixels, self.device)
                )

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return each student's squared distance from the teacher (eq. 6), its mean over places and students."""
        losses = []
        for scale in self.scales():
            wanted, said = scale.answers(images, dense=self.config.dense)
            losses.append((said - wanted).square().sum(2).mean())
        return torch.stack(losses).mean()

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Measure error and spread on good images that no student has seen."""
        del training
        with torch.no_grad():
            for scale in self.scales():
                maps = torch.cat(
                    [scale.errors(batch, dense=self.config.dense).cpu() for batch in batches(held_out, self.device)]
                )
                scale.units.copy_(maps.double().std((0, 2, 3)).clamp_min(1e-12))

    def evidence(self, images: Float[Tensor, "batch 3 height width"]) -> Evidence:
        """Return the root of the map: error and spread, each in its units, their sum's mean over scales (eq. 10, 11).

        The paper first takes the means of both away, the same number everywhere; without that no value is negative.
        """
        maps = [
            (scale.errors(images, dense=self.config.dense) / scale.units[:, None, None]).sum(1)
            for scale in self.scales()
        ]
        return Evidence(torch.stack(maps).mean(0).sqrt()[:, None])

    def _source(self) -> Backbone:
        config = self.config
        return trained_backbone(config.backbone, (config.tap,), config.weights, self.device)

    def _teacher_loss(self, source: Backbone, images: Tensor) -> Tensor:
        """Return the loss of all teachers: that of knowledge and that of compactness (eq. 1 and 4)."""
        losses = []
        for scale in self.scales():
            patches = varied(images, (scale.side, scale.side), copies=math.ceil(self.config.patches / len(images)))
            with torch.no_grad():
                wanted = self.described(_described(source, patches)).flatten(1)
            descriptors = scale.teacher(patches).flatten(1)
            knowledge = (scale.decoder(descriptors) - wanted).square().mean()
            losses.append(knowledge + compactness(descriptors))
        return torch.stack(losses).mean()


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
    maps: Tensor = source(large)[0]
    return maps.float().mean((2, 3), keepdim=True)
