"""PIADE (Mishra et al. 2020, "A Neural Network for Image Anomaly Detection with Deep Pyramidal Representations and
Dynamic Routing"): an autoencoder whose bottleneck is two capsules.

The encoder is a network pretrained on ImageNet, with channel attention, and is fine-tuned. Its last map is pooled to
four widths, split into capsules, and routed to two capsules. The longer capsule and the last map are decoded to an
image. The image score is the reconstruction error: of pixels, of structure (SSIM), and of features of a frozen network.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, Protocol
from metalad.detectors.reconstruction import Reconstructor
from metalad.detectors.residuals import Residuals
from metalad.nn.backbones import Backbone, load_weights
from metalad.nn.capsules import Capsules, longest
from metalad.nn.losses import WINDOW, mean_ssim, ssim_map
from metalad.nn.networks import TAPPED_STAGES, HookPoint, Tap, channels_of, create_network
from metalad.nn.pixels import Pixels, to_batch
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.settings import setting
from metalad.training.loop import Training

REDUCTION = 16
PYRAMID = (1, 2, 4, 8)
"""Factors by which the branches reduce the number of channels."""
CAPSULE, VECTOR = 8, 64
PERCEPTUAL_TAP: Tap = "s4"
"""Tap of the perceptual error: about as deep as the second convolution of VGG-11, which the paper uses."""
VARIANCE_IMAGES, MIN_VARIANCE = 64, 1e-3
CODE = 512
"""Channels that the selected capsule is decoded to, at the size of the encoder's last map."""


@dataclass(frozen=True, kw_only=True)
class PiadeConfig(DetectorConfig):
    """Settings of PIADE; those of the paper, except the encoder."""

    image_size: tuple[int, int] = setting((120, 120), "height and width that images are resized to, in pixels")
    backbone: Literal["lite0", "lite1", "resnet18", "wide_resnet50_2"] = setting(
        "lite0", "pretrained encoder; a ResNet needs weights=PATH"
    )
    weights: str | None = setting(None, "weights file of the encoder; none: the installed weights")
    vectors: int = setting(2, "output capsules of the routing")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        if self.vectors < 1:
            raise ConfigError(f"vectors is {self.vectors}; it must be at least 1")

    @property
    def grid(self) -> tuple[int, int]:
        """Size of the encoder's last map: rows, columns."""
        return -(-self.image_size[0] // 32), -(-self.image_size[1] // 32)


class Attention(nn.Module):
    """Weights channels by a function of the channel means: squeeze and excitation (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.squeeze, self.excite = nn.Linear(channels, hidden, bias=False), nn.Linear(hidden, channels, bias=False)

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the maps, each multiplied by a weight in (0, 1)."""
        weights: Tensor = self.excite(F.relu(self.squeeze(maps.mean((2, 3))))).sigmoid()
        return maps * weights[..., None, None]


class Pyramid(nn.Module):
    """Global average pooling, then linear layers to four widths; the concatenated result is split into capsules."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Linear(channels, channels // part, bias=False), nn.BatchNorm1d(channels // part), nn.ReLU()
            )
            for part in PYRAMID
        )
        self.capsules = sum(channels // part for part in PYRAMID) // CAPSULE

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch capsules features"]:
        """Return capsules of 8 values, none negative."""
        pooled = maps.mean((2, 3))
        mixed = torch.cat([branch(pooled) for branch in self.branches], 1)
        return mixed.reshape(mixed.shape[0], -1, CAPSULE)


class Piade(Reconstructor):
    """PIADE: encoder with attention, pyramid, capsules, two decoders, and a frozen network for the perceptual error."""

    name = "piade"
    min_images = 2  # batch norm needs two vectors
    has_own_score = True
    config: PiadeConfig
    seen_variance: Tensor

    def __init__(self, config: PiadeConfig) -> None:
        super().__init__(config)
        self.network = create_network(config.backbone, tuple(TAPPED_STAGES))
        channels = channels_of(self.network)
        self.attention = nn.ModuleDict({tap: Attention(count) for tap, count in channels.items()})
        self.pyramid = Pyramid(channels["s32"])
        self.capsules = Capsules(self.pyramid.capsules, config.vectors, CAPSULE, VECTOR)
        self.vector_decoder = _vector_decoder(CODE * config.grid[0] * config.grid[1])
        self.image_decoder = _image_decoder((channels["s32"] + CODE) // 4)
        self.judge_network = Backbone("lite0", (PERCEPTUAL_TAP,))
        self.register_buffer("seen_variance", torch.ones(channels_of(self.judge_network.network)[PERCEPTUAL_TAP], 1, 1))

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the authors' settings, or smaller batches with a cosine schedule."""
        if protocol == "paper":
            return (
                Training(
                    learning_rate=1e-3,
                    batch_size=60,
                    max_epochs=400,
                    weight_decay=1e-3,
                    keep="last",
                    whole_batches=True,
                ),
            )
        return (Training(learning_rate=2e-3, batch_size=16, steps=400, schedule="cosine", whole_batches=True),)

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Load the encoder's pretrained weights, and compute the variance of the perceptual features.

        Raises:
            ConfigError: no weights for the encoder.
        """
        del stage, seed
        load_weights(self.network, self.config.backbone, self.config.weights)
        self.judge_network.load()
        with torch.no_grad():
            (features,) = self.judge_network(to_batch(pixels[:VARIANCE_IMAGES], self.device))
        self.seen_variance.copy_(features.var((0, 2, 3))[:, None, None].clamp_min(MIN_VARIANCE))

    def reconstruct(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Reconstruct images from the longer capsule and the encoder's last map; values are in (-1, 1)."""
        *_, (_, maps) = self.network.features(self.network.normalised(images), self._attend)
        vector = longest(self.capsules(self.pyramid(maps)))
        code = self.vector_decoder(vector).reshape(-1, CODE, *self.config.grid)
        joined = F.pixel_shuffle(torch.cat([maps, code], 1), 2)
        reconstruction: Tensor = self.image_decoder(joined).float()
        if reconstruction.shape[-2:] != images.shape[-2:]:
            reconstruction = F.interpolate(reconstruction, images.shape[-2:], mode="bilinear")
        return reconstruction.tanh()

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return MSE − SSIM + perceptual error of the reconstruction.

        Raises:
            DataError: a single training image.
        """
        if self.training and len(images) < self.min_images:
            raise DataError(f"piade needs at least {self.min_images} good images to train on, got {len(images)}")
        reconstruction = self.reconstruct(images)
        return (
            F.mse_loss(reconstruction, images)
            - mean_ssim(reconstruction, images)
            + self._perceptual_error(reconstruction, images).mean()
        )

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return color errors and, as a fourth channel, the square root of 1 − SSIM; and the image score.

        The map is the sum of their squares; the paper has no map. The image score is MSE + (1 − SSIM) + perceptual
        error, which is the paper's score plus 1.
        """
        reconstruction = self.reconstruct(images)
        ssim = ssim_map(reconstruction, images)
        border = (WINDOW // 2,) * 4
        structure = F.pad((1 - ssim.mean(1, keepdim=True)).clamp_min(0), border, mode="replicate")
        residual = torch.cat([reconstruction - images, structure.sqrt()], 1)
        score = (reconstruction - images).square().mean((1, 2, 3)) + 1 - ssim.mean((1, 2, 3))
        return Residuals(residual, reconstruction.clamp(0, 1), score + self._perceptual_error(reconstruction, images))

    def _attend(self, point: HookPoint, maps: Tensor) -> Tensor:
        attended: Tensor = self.attention[point](maps)
        return attended

    def _perceptual_error(self, reconstruction: Tensor, images: Tensor) -> Float[Tensor, " batch"]:
        (features,), (target,) = self.judge_network(reconstruction), self.judge_network(images)
        error: Tensor = (features - target).float().square() / self.seen_variance
        return error.mean((1, 2, 3))


def _vector_decoder(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(VECTOR, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Linear(128, 512),
        nn.BatchNorm1d(512),
        nn.ReLU(),
        nn.Linear(512, outputs),
        nn.ReLU(),
    )


def _image_decoder(channels: int) -> nn.Sequential:
    """Decode from twice the size of the last map to the image size: 8, 15, 29, 60, 120 pixels."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 32, 3, 2, 1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 32, 4, 2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 3, 4, 2, 1),
    )
