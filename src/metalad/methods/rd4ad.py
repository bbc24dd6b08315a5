"""RD4AD, reverse distillation (Deng & Li 2022, arXiv:2201.10703).

A bottleneck embedding compresses the maps of a frozen teacher at several scales to one small map. A student decodes it,
from the deepest scale to the finest, and is trained to reconstruct the teacher's maps of good images. The anomaly map
is the cosine distance between teacher and student. The student receives no image, only the compressed features, so it
cannot copy an anomaly that the teacher represents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, GradientDetector, Protocol
from metalad.detectors.distillation import CachedFeatures, PartLearner, fit_standardization
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone
from metalad.nn.networks import ResidualBlock, Tap
from metalad.nn.pixels import Pixels
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import auto_size, setting
from metalad.training.loop import Learner, Training

RECTIFIED = ("resnet18", "wide_resnet50_2", "vgg16")
"""Backbones whose feature maps are outputs of a ReLU."""
MIN_POSITIONS = 4
"""Positions along a side of the deepest map: 2 are left after the bottleneck, enough for batch norm of one image."""


@dataclass(frozen=True, kw_only=True)
class RD4ADConfig(DetectorConfig):
    """Settings of RD4AD; the paper has backbone=wide_resnet50_2, standardized=false, block=bottleneck and
    blocks=3,3,4,6."""

    image_size: tuple[int, int] = auto_size(256, 32)
    backbone: str = setting("lite0", "teacher, trained on ImageNet; all but lite0-2 need weights=PATH")
    weights: str | None = setting(None, "weights file of the backbone; none: the installed weights")
    taps: tuple[Tap, ...] = setting(("s4", "s8", "s16"), "strides of the feature maps that are used")
    standardized: bool = setting(True, "standardize the teacher's channels to mean 0 and standard deviation 1")
    block: Literal["basic", "bottleneck"] = setting("basic", "residual blocks of two convolutions, or of three")
    blocks: tuple[int, ...] = setting(
        (1,), "residual blocks of the embedding, and of each decoder stage from the deepest; one number: of all"
    )

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if min(self.blocks, default=0) < 1 or len(self.blocks) not in (1, 1 + len(self.taps)):
            raise ConfigError(
                f"blocks is {','.join(map(str, self.blocks))}; give one number of at least 1, or {1 + len(self.taps)}: "
                "one for the embedding and one for each tap"
            )


class Scale:
    """Channels, height and width of a map of the teacher."""

    def __init__(self, maps: Float[Tensor, "batch channels height width"]) -> None:
        self.channels, *grid = maps.shape[1:]
        self.grid = (grid[0], grid[1])

    def times(self, other: "Scale") -> int:
        """Return how many times more positions along a side this map has than `other`."""
        return max(1, round(self.grid[0] / other.grid[0]))


class UpsamplingBlock(nn.Module):
    """A residual block that enlarges maps by transposed convolutions, the reverse of a strided `ResidualBlock`."""

    def __init__(self, inputs: int, outputs: int, factor: int, *, bottleneck: bool) -> None:
        super().__init__()

        def enlarging(inputs: int, outputs: int) -> list[nn.Module]:
            if factor == 1:
                return [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)]
            return [nn.ConvTranspose2d(inputs, outputs, factor, factor, bias=False), nn.BatchNorm2d(outputs)]

        hidden = _hidden(outputs, bottleneck=bottleneck)
        layers = enlarging(hidden if bottleneck else inputs, hidden)
        kernel = 3
        if bottleneck:
            kernel = 1
            layers = [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(), *layers]
        last = [nn.Conv2d(hidden, outputs, kernel, 1, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), *last)
        self.shortcut = nn.Sequential(*enlarging(inputs, outputs))

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out down across"]:
        """Return the block's maps."""
        return F.relu(self.layers(maps) + self.shortcut(maps))


class Embedding(nn.Module):
    """One-class bottleneck embedding: fuses all maps at the deepest scale, and halves their sides (paper, 3.3)."""

    def __init__(self, scales: Sequence[Scale], blocks: int, *, bottleneck: bool) -> None:
        super().__init__()
        self.fusions = nn.ModuleList()
        for index in range(len(scales) - 1):
            layers: list[nn.Module] = []
            for one, other in pairwise(scales[index:]):
                convolution = nn.Conv2d(one.channels, other.channels, 3, one.times(other), 1, bias=False)
                layers += [convolution, nn.BatchNorm2d(other.channels), nn.ReLU()]
            self.fusions.append(nn.Sequential(*layers))
        channels = scales[-1].channels
        self.channels = 2 * channels
        hidden = _hidden(self.channels, bottleneck=bottleneck)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(
                    self.channels if index else len(scales) * channels,
                    hidden,
                    self.channels,
                    1 if index else 2,
                    bottleneck=bottleneck,
                )
                for index in range(blocks)
            )
        )

    def forward(self, maps: Sequence[Float[Tensor, "batch _ _ _"]]) -> Float[Tensor, "batch embedded down across"]:
        """Return the embedding of the teacher's maps, which are given from the finest to the deepest."""
        *finer, deepest = maps
        fused = [_resized(fuse(each), deepest) for fuse, each in zip(self.fusions, finer, strict=True)]
        embedded: Tensor = self.blocks(torch.cat([*fused, deepest], 1))
        return embedded


class Decoder(nn.Module):
    """The student: its stages are those of the teacher in reverse order, each with an output of the teacher's shape.

    signed: the teacher's maps have negative values; the outputs are linear then.
    """

    def __init__(
        self, embedded: int, scales: Sequence[Scale], blocks: Sequence[int], *, bottleneck: bool, signed: bool
    ) -> None:
        super().__init__()
        self.stages, self.heads = nn.ModuleList(), nn.ModuleList()
        inputs, factor = embedded, 2
        for index, scale in reversed(list(enumerate(scales))):
            outputs = scale.channels
            hidden = _hidden(outputs, bottleneck=bottleneck)
            further = [
                ResidualBlock(outputs, hidden, outputs, 1, bottleneck=bottleneck)
                for _ in range(blocks[len(self.stages)] - 1)
            ]
            self.stages.append(nn.Sequential(UpsamplingBlock(inputs, outputs, factor, bottleneck=bottleneck), *further))
            self.heads.append(nn.Conv2d(outputs, outputs, 1) if signed else nn.Identity())
            inputs, factor = outputs, scales[index - 1].times(scale)

    def forward(
        self, embedded: Float[Tensor, "batch embedded down across"], targets: Sequence[Float[Tensor, "batch _ _ _"]]
    ) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the reconstruction of each map, in the order and with the sizes of `targets`."""
        maps, reconstructed = embedded, list[Tensor]()
        for stage, head, target in zip(self.stages, self.heads, reversed(targets), strict=True):
            maps = _resized(stage(maps), target)
            reconstructed.append(head(maps).float())
        return reconstructed[::-1]


class RD4AD(GradientDetector):
    """RD4AD: a frozen teacher, the bottleneck embedding of its maps, and the student that decodes it."""

    name = "rd4ad"
    config: RD4ADConfig

    def __init__(self, config: RD4ADConfig) -> None:
        super().__init__(config)
        # From the finest to the deepest, in whichever order they are given.
        self.teacher = Backbone(config.backbone, sorted(config.taps, key=lambda tap: int(tap[1:])))
        with torch.no_grad():
            scales = [Scale(maps) for maps in self.teacher(torch.zeros(1, 3, *config.image_size))]
        if min(scales[-1].grid) < MIN_POSITIONS:
            raise ConfigError(
                f"image_size {config.image_size} is too small: the deepest map has {scales[-1].grid} positions and "
                f"needs {MIN_POSITIONS} along each side"
            )
        bottleneck = config.block == "bottleneck"
        blocks = config.blocks if len(config.blocks) > 1 else config.blocks * (1 + len(scales))
        signed = config.standardized or config.backbone not in RECTIFIED
        self.targets = nn.ModuleList(Standardization(scale.channels) for scale in scales)
        self.embedding = Embedding(scales, blocks[0], bottleneck=bottleneck)
        self.student = Decoder(self.embedding.channels, scales, blocks[1:], bottleneck=bottleneck, signed=signed)
        for module in (*self.embedding.modules(), *self.student.modules()):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the 200 epochs of the paper, or fewer steps with a decaying learning rate."""
        published = partial(Training, batch_size=16, betas=(0.5, 0.999), keep="last", whole_batches=True)
        if protocol == "paper":
            return (published(learning_rate=5e-3, max_epochs=200),)
        return (published(learning_rate=5e-3, steps=300, schedule="cosine"),)

    def learner(self, stage: str) -> Learner:
        """Return embedding and student; the teacher's maps of a training image are computed once."""
        del stage
        return PartLearner(
            nn.ModuleList([self.embedding, self.student]), partial(self._loss, CachedFeatures(self.teacher))
        )

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Load the teacher, and fit the standardization of its maps on the training images."""
        del stage, seed
        self.teacher.load(self.config.weights)
        self.teacher.to(self.device)
        if self.config.standardized:
            fit_standardization(self.targets, self.teacher, pixels, self.device)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the cosine distance of the flattened maps, summed over scales, averaged over images.

        The paper averages the distance over positions (eq. 2); the flattened form is that of the authors' code.
        """
        return self._loss(self.teacher, images)

    def distances(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch down across"]]:
        """Return the cosine distance at each position (eq. 1), in [0, 2], for each scale from the finest."""
        targets = self._targets(self.teacher(images))
        return [
            (1 - F.cosine_similarity(target, reconstructed)).clamp_min(0)
            for target, reconstructed in zip(targets, self._reconstructed(targets), strict=True)
        ]

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the square root of the map: the sum of the upsampled distances of all scales (eq. 3)."""
        size = images.shape[-2:]
        upsampled = [F.interpolate(each[:, None], size, mode="bilinear") for each in self.distances(images)]
        return Residuals(torch.stack(upsampled).sum(0).sqrt())

    def _loss(self, teacher: "Backbone | CachedFeatures", images: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self._targets(teacher(images))
        losses = [
            1 - F.cosine_similarity(target.flatten(1), reconstructed.flatten(1)).mean()
            for target, reconstructed in zip(targets, self._reconstructed(targets), strict=True)
        ]
        return torch.stack(losses).sum()

    def _targets(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the teacher's maps, standardized if so configured; without, the standardization is the identity."""
        return [standardize(each) for standardize, each in zip(self.targets, maps, strict=True)]

    def _reconstructed(self, targets: Sequence[Tensor]) -> list[Tensor]:
        reconstructed: list[Tensor] = self.student(self.embedding(targets), targets)
        return reconstructed


def _hidden(outputs: int, *, bottleneck: bool) -> int:
    """Return the inner channels of a block: half of the outputs in a bottleneck, as in Wide ResNet-50."""
    return max(1, outputs // 2) if bottleneck else outputs


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    """Return the maps at the size of `like`; the sizes differ only where a side is not a multiple of the stride."""
    size = like.shape[-2:]
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear")
