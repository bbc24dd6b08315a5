"""MKD, multiresolution knowledge distillation (Salehi et al. 2021, arXiv:2011.11108).

On good images, a small cloner network is trained to predict the features of a large network trained on ImageNet, the
source, at several depths. The image score is the difference between the two networks. The anomaly map is the gradient
of this difference with respect to the pixels.
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

SCORED_LAYERS = 3
"""Number of last critical layers in the anomaly score; training uses all."""
HIDDEN_CHANNELS = 16
"""Channels of the cloner's convolutions that predict no critical layer."""


@dataclass(frozen=True, kw_only=True)
class MKDConfig(DetectorConfig):
    """Settings of MKD; the paper has backbone=vgg16 and standardised=false."""

    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "own", "image score: own: the difference; or the map's maximum, its mean, the mean of its highest 1 %"
    )
    backbone: str = setting("lite0", "source network; all but lite0-2 need weights=PATH")
    weights: str | None = setting(None, "weights file of the backbone; none: the installed weights")
    standardised: bool = setting(True, "standardize the source's channels to mean 0 and standard deviation 1")
    length_weight: float = setting(0.5, "weight of the squared difference; weight of the direction: 1")
    gradient: Literal["guided", "plain"] = setting(
        "guided", "gradient of the cloner: guided backpropagation (positive gradients only), or plain"
    )

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if not 0 <= self.length_weight < float("inf"):
            raise ConfigError(f"length_weight is {self.length_weight}; it must not be negative")
        if min(self.image_size) < 32:
            raise ConfigError(f"image_size is {self.image_size}; the deepest layer needs at least 32 pixels")
        if not self.standardised and self.backbone.startswith("lite"):
            raise ConfigError(f"{self.backbone} has negative features; set standardised=true")


class _GuidedReLU(torch.autograd.Function):
    """A ReLU whose backward pass keeps only positive gradients (guided backpropagation, Springenberg 2015)."""

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
    """The source network; its critical layers have strides 4, 8, 16 and 32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.pools = name == "vgg16"
        self.backbone = Backbone(name, ("s4", "s8", "s16") if self.pools else ("s4", "s8", "s16", "s32"))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the maps of the critical layers; of VGG, the outputs of all pooling layers except the first."""
        if not self.pools:
            features: list[Tensor] = self.backbone(images)
            return features
        maps, pooled = self.backbone.network.normalised(images), []
        for layer in self.backbone.network.get_submodule("features_").children():
            maps = layer(maps)
            if isinstance(layer, nn.MaxPool2d):
                pooled.append(maps)
        return [*pooled[1:], F.max_pool2d(maps, 2)]

    def channels(self) -> list[int]:
        """Return the number of channels of each critical layer."""
        with torch.no_grad():
            return [maps.shape[1] for maps in self(torch.zeros(1, 3, 32, 32))]


class Cloner(nn.Module):
    """Convolutions of few channels, except in the layers that predict a critical layer.

    signed: targets may be negative: no ReLU before the output, and mean pooling instead of maximum pooling.
    upwards: round half of an odd side up, like strided convolutions, not down, like pooling.
    """

    def __init__(self, channels: Sequence[int], *, signed: bool, upwards: bool) -> None:
        super().__init__()
        self.signed, self.upwards = signed, upwards
        self.stages = nn.ModuleList()
        self.norms = nn.ModuleList()
        inputs = 3
        for index, outputs in enumerate((HIDDEN_CHANNELS, *channels)):
            widths = [inputs, *[HIDDEN_CHANNELS] * (1 if index < 2 else 2), outputs]
            layers = [nn.Conv2d(one, other, 3, 1, 1, bias=False) for one, other in pairwise(widths)]
            for layer in layers:
                nn.init.xavier_uniform_(layer.weight)
            self.stages.append(nn.ModuleList(layers))
            self.norms.append(nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:-1]))
            inputs = outputs

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], *, guided: bool = False
    ) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the predicted maps of the critical layers."""
        relu: Any = _GuidedReLU.apply if guided else F.relu
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
    """MKD: a frozen source, its cloner, and the scale of the gradients.

    unit: the scale, root mean square of the gradient on held-out good images.
    """

    name = "mkd"
    not_exportable = "the anomaly map is a gradient by the pixels, and exported graphs compute no gradients"
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
        """Return the 601 epochs of the authors' code for MVTec AD, or fewer steps, enough for a small network."""
        if protocol == "paper":
            return (Training(learning_rate=1e-3, batch_size=64, max_epochs=601, keep="last", whole_batches=True),)
        return (
            Training(learning_rate=2e-3, batch_size=16, steps=600, schedule="cosine", keep="last", whole_batches=True),
        )

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Load the source, and fit the standardization of its features on the training images."""
        del stage, seed
        self.source.backbone.load(self.config.weights)
        self.source.to(self.device)
        if self.config.standardised:
            fit_standardization(self.units, self.source, pixels, self.device)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the difference between source and cloner, summed over all critical layers (eq. 3)."""
        return self.differences(images).sum(1).mean()

    def differences(
        self, images: Float[Tensor, "batch 3 height width"], *, guided: bool = False
    ) -> Float[Tensor, "batch layers"]:
        """Return the difference at each critical layer: cosine distance plus weighted squared difference (eq. 1, 2).

        The cosine is computed over all values of a layer together, as in the authors' code.
        """
        layers = []
        for standardization, features, predicted in zip(
            self.units, self.source(images), self.cloner(images, guided=guided), strict=True
        ):
            target = (standardization(features) if self.config.standardised else features).float()
            cloned = predicted.float()
            direction = 1 - F.cosine_similarity(target.flatten(1), cloned.flatten(1), dim=1)
            layers.append(direction + self.config.length_weight * (target - cloned).square().flatten(1).mean(1))
        return torch.stack(layers, 1)

    def score(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, " batch"]:
        """Return each image's difference, summed over the last three layers."""
        return self.differences(images, guided=self.config.gradient == "guided")[:, -SCORED_LAYERS:].sum(1)

    def gradients(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch 3 height width"], Float[Tensor, " batch"]]:
        """Return the gradient of each image's score with respect to its pixels, and the score."""
        with torch.inference_mode(False), torch.enable_grad():
            inputs = images.clone().requires_grad_()
            scores = self.score(inputs)
            (gradient,) = torch.autograd.grad(scores.sum(), inputs)
        return gradient, scores.detach()

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Compute the scale of the gradients on held-out good images."""
        del training
        squares = torch.stack([self.gradients(batch)[0].square().mean() for batch in batches(held_out, self.device, 1)])
        self.unit.copy_(squares.mean().sqrt().clamp_min(1e-12))

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the scaled gradient, and the difference as the image score."""
        gradient, scores = self.gradients(images)
        return Residuals(gradient / self.unit, score=scores)

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the gradient's absolute value, summed over colors."""
        return residuals.values.abs().sum(1)
