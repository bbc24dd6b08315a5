"""MKD, multiresolution knowledge distillation (Salehi et al. 2021, arXiv:2011.11108).

A small cloner learns, on good images, to say what a large network trained on ImageNet says at several depths. An image
is as abnormal as the two then differ; which pixels make them differ, the gradient of the difference tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from metalad.detectors.base import DetectorConfig, GradientDetector, Protocol
from metalad.detectors.distillation import fit_standardization
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone
from metalad.nn.pixels import Pixels, batches
from metalad.nn.standardization import Standardization
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Training

SCORED = 3
"""The difference of the last so many layers is the anomaly score; all are learnt from."""
HIDDEN = 16
"""Channels of the cloner's other convolutions."""


@dataclass(frozen=True, kw_only=True)
class MKDConfig(DetectorConfig):
    """Settings of MKD; the paper's are backbone=vgg16 with its weights, standardised=false."""

    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "own", "image score: the difference itself (own), the map's maximum, its mean, or that of its highest 1 %"
    )
    backbone: str = setting("lite0", "network that is the source; but for lite0-2, name its weights too")
    weights: str | None = setting(None, "weights file of the backbone; none: those that are installed")
    standardised: bool = setting(True, "learn the source's channels less their mean, in their standard deviation")
    length_weight: float = setting(0.5, "weight of the squared difference beside that of the directions")
    gradient: Literal["guided", "plain"] = setting(
        "guided", "how the cloner leads differences back to pixels: only by what raises them, or plainly"
    )

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if not 0 <= self.length_weight < float("inf"):
            raise ConfigError(f"length_weight is {self.length_weight}; it must not be negative")
        if min(self.image_size) < 32:
            raise ConfigError(f"image_size is {self.image_size}; the deepest layer needs at least 32 pixels")
        if not self.standardised and self.backbone.startswith("lite"):
            raise ConfigError(f"{self.backbone} says negative numbers, too: the cloner needs standardised=true")


class _Guided(torch.autograd.Function):
    """A ReLU that leads back only what is positive (Springenberg 2015)."""

    @staticmethod
    def forward(context: Any, maps: Tensor) -> Tensor:
        context.save_for_backward(maps)
        return maps.clamp_min(0)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (maps,) = context.saved_tensors
        positive: Tensor = gradients[0].clamp_min(0) * (maps > 0)
        return positive


class Source(nn.Module):
    """The large network and its critical layers, at a quarter, an 8th, a 16th and a 32nd of the image's side."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.pools = name == "vgg16"
        self.backbone = Backbone(name, ("s4", "s8", "s16") if self.pools else ("s4", "s8", "s16", "s32"))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the maps of the critical layers: in VGG, what follows its poolings but the first."""
        if not self.pools:
            tapped: list[Tensor] = self.backbone(images)
            return tapped
        maps, pooled = self.backbone.network.normalised(images), []
        for layer in self.backbone.network.get_submodule("features_").children():
            maps = layer(maps)
            if isinstance(layer, nn.MaxPool2d):
                pooled.append(maps)
        return [*pooled[1:], F.max_pool2d(maps, 2)]

    def channels(self) -> list[int]:
        """Return how many channels each critical layer has."""
        with torch.no_grad():
            return [maps.shape[1] for maps in self(torch.zeros(1, 3, 32, 32))]


class Cloner(nn.Module):
    """Thin convolutions, wide only where a critical layer is cloned.

    signed: what is cloned may be negative: no ReLU lies before it, and the mean is pooled, not the maximum.
    upwards: half of an odd side is rounded up, as by strides, not down, as by poolings.
    """

    def __init__(self, channels: Sequence[int], *, signed: bool, upwards: bool) -> None:
        super().__init__()
        self.signed, self.upwards = signed, upwards
        self.stages = nn.ModuleList()
        self.norms = nn.ModuleList()
        inputs = 3
        for index, outputs in enumerate((HIDDEN, *channels)):
            widths = [inputs, *[HIDDEN] * (1 if index < 2 else 2), outputs]
            layers = [nn.Conv2d(one, other, 3, 1, 1, bias=False) for one, other in pairwise(widths)]
            for layer in layers:
                nn.init.xavier_uniform_(layer.weight)
            self.stages.append(nn.ModuleList(layers))
            self.norms.append(nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:-1]))
            inputs = outputs

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], *, guided: bool = False
    ) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return its version of the critical layers."""
        relu: Any = _Guided.apply if guided else F.relu
        maps, cloned = images, []
        for index, (stage, norms) in enumerate(zip(self.stages, self.norms, strict=True)):
            layers: list[nn.Module] = list(stage.children())
            for layer, norm in zip(layers[:-1], norms.children(), strict=True):
                maps = relu(norm(layer(maps)))
            maps = layers[-1](maps)
            if self.signed and index:
                maps = F.avg_pool2d(maps, 2, ceil_mode=self.upwards)
            else:
                maps = F.max_pool2d(relu(maps), 2, ceil_mode=self.upwards)
            if index:
                cloned.append(maps)
        return cloned


class MKD(GradientDetector):
    """MKD: a frozen source, its cloner, and the unit of gradients.

    unit: root mean square of the gradient on held-out good images.
    """

    name = "mkd"
    has_own_score = True
    config: MKDConfig
    unit: Tensor

    def __init__(self, config: MKDConfig) -> None:
        super().__init__(config)
        self.source = Source(config.backbone)
        channels = self.source.channels()
        self.units = nn.ModuleList(Standardization(count) for count in channels)
        self.cloner = Cloner(channels, signed=config.standardised, upwards=not self.source.pools)
        self.register_buffer("unit", torch.ones(()))

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the 601 epochs that the authors' code gives MVTec AD, or as many steps as a small network needs."""
        if protocol == "paper":
            return (Training(learning_rate=1e-3, batch_size=64, max_epochs=601, keep="last", whole_batches=True),)
        return (
            Training(learning_rate=2e-3, batch_size=16, steps=600, schedule="cosine", keep="last", whole_batches=True),
        )

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Load the source, and learn the units of what it says on the training images."""
        del stage, seed
        self.source.backbone.load(self.config.weights)
        self.source.to(self.device)
        if self.config.standardised:
            fit_standardization(self.units, self.source, pixels, self.device)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the difference of source and cloner over all critical layers (eq. 3)."""
        return self.differences(images).sum(1).mean()

    def differences(
        self, images: Float[Tensor, "batch 3 height width"], *, guided: bool = False
    ) -> Float[Tensor, "batch layers"]:
        """Return how source and cloner differ at each critical layer: in direction, and in squared length (eq. 1, 2).

        The direction is that of all of a layer's values together, as the authors' code has it.
        """
        layers = []
        for unit, wanted, said in zip(self.units, self.source(images), self.cloner(images, guided=guided), strict=True):
            known, cloned = (unit(wanted) if self.config.standardised else wanted).float(), said.float()
            direction = 1 - F.cosine_similarity(known.flatten(1), cloned.flatten(1), dim=1)
            layers.append(direction + self.config.length_weight * (known - cloned).square().flatten(1).mean(1))
        return torch.stack(layers, 1)

    def score(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, " batch"]:
        """Return each image's difference over the last three layers."""
        return self.differences(images, guided=self.config.gradient == "guided")[:, -SCORED:].sum(1)

    def gradients(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch 3 height width"], Float[Tensor, " batch"]]:
        """Return the gradient of each image's score to its pixels, and the score."""
        with torch.inference_mode(False), torch.enable_grad():
            seen = images.clone().requires_grad_()
            scores = self.score(seen)
            (gradient,) = torch.autograd.grad(scores.sum(), seen)
        return gradient, scores.detach()

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Measure how large gradients are on good images that the cloner has not seen."""
        del training
        squares = torch.stack([self.gradients(batch)[0].square().mean() for batch in batches(held_out, self.device, 1)])
        self.unit.copy_(squares.mean().sqrt().clamp_min(1e-12))

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the gradient in its unit, and the difference as the image's score."""
        gradient, scores = self.gradients(images)
        return Residuals(gradient / self.unit, score=scores)

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the gradient's absolute value, summed over colours."""
        return residuals.values.abs().sum(1)
