"""PIADE (Mishra et al. 2020, "A Neural Network for Image Anomaly Detection with Deep Pyramidal Representations and
Dynamic Routing"): an autoencoder whose bottleneck is two capsules.

A network trained on ImageNet, with attention over its channels and trained on, sees an image. What it sees is pooled to
four widths, cut into capsules, and routed to two; the longer one, beside the network's last map, is decoded. An image
is abnormal if it is not rebuilt: in its pixels, its structure, and what another network sees in it.
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
from metalad.nn.networks import TAPPED_STAGES, Place, Tap, channels_of, network_named
from metalad.nn.pixels import Pixels, to_batch
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.settings import setting
from metalad.training.loop import Training

REDUCTION = 16
PYRAMID = (1, 2, 4, 8)
"""A branch keeps one channel of so many."""
CAPSULE, VECTOR = 8, 64
SEEN: Tap = "s4"
"""Where the images' features are compared: about as deep as the paper's second convolution of VGG-11."""
VARIANCE_IMAGES, MIN_VARIANCE = 64, 1e-3
CODE = 512
"""Channels that the kept capsule is decoded to, at the size of the network's last map."""


@dataclass(frozen=True, kw_only=True)
class PiadeConfig(DetectorConfig):
    """Settings of PIADE; the paper's, but for the encoder."""

    image_size: tuple[int, int] = setting((120, 120), "height and width that images are resized to, in pixels")
    backbone: Literal["lite0", "lite1", "resnet18", "wide_resnet50_2"] = setting(
        "lite0", "the encoder before training; for a ResNet, name its weights too"
    )
    weights: str | None = setting(None, "weights file of the encoder; none: those that are installed")
    vectors: int = setting(2, "capsules that are routed to")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if self.vectors < 1:
            raise ConfigError(f"vectors is {self.vectors}; it must be at least 1")

    @property
    def grid(self) -> tuple[int, int]:
        """Places down and across in the encoder's last map."""
        return -(-self.image_size[0] // 32), -(-self.image_size[1] // 32)


class Attention(nn.Module):
    """Weighs channels by what all of them show in the whole image: squeeze and excitation (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.squeeze, self.excite = nn.Linear(channels, hidden, bias=False), nn.Linear(hidden, channels, bias=False)

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the maps, each times a factor in (0, 1)."""
        weights: Tensor = self.excite(F.relu(self.squeeze(maps.mean((2, 3))))).sigmoid()
        return maps * weights[..., None, None]


class Pyramid(nn.Module):
    """Pools maps over the whole image, and mixes their channels to four widths; the result is cut into capsules."""

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
        return mixed.reshape(len(maps), -1, CAPSULE)


class Piade(Reconstructor):
    """PIADE: encoder with attention, pyramid, capsules, two decoders, and a frozen network that compares."""

    name = "piade"
    has_own_score = True
    config: PiadeConfig
    seen_variance: Tensor

    def __init__(self, config: PiadeConfig) -> None:
        super().__init__(config)
        self.network = network_named(config.backbone, tuple(TAPPED_STAGES))
        channels = channels_of(self.network)
        self.attention = nn.ModuleDict({place: Attention(count) for place, count in channels.items()})
        self.pyramid = Pyramid(channels["s32"])
        self.capsules = Capsules(self.pyramid.capsules, config.vectors, CAPSULE, VECTOR)
        self.vector_decoder = _vector_decoder(CODE * config.grid[0] * config.grid[1])
        self.image_decoder = _image_decoder((channels["s32"] + CODE) // 4)
        self.judge_network = Backbone("lite0", (SEEN,))
        self.register_buffer("seen_variance", torch.ones(channels_of(self.judge_network.network)[SEEN], 1, 1))

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the authors' settings, or smaller batches on a cosine schedule."""
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
        """Begin with the encoder's trained weights, and learn how much the features vary that are to be compared.

        Raises:
            ConfigError: no weights for the encoder.
        """
        del stage, seed
        load_weights(self.network, self.config.backbone, self.config.weights)
        self.judge_network.load()
        with torch.no_grad():
            (seen,) = self.judge_network(to_batch(pixels[:VARIANCE_IMAGES], self.device))
        self.seen_variance.copy_(seen.var((0, 2, 3))[:, None, None].clamp_min(MIN_VARIANCE))

    def reconstruct(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Rebuild images from the longer capsule and the encoder's last map; values lie in (-1, 1)."""
        *_, (_, maps) = self.network.features(self.network.normalised(images), self._attend)
        vector = longest(self.capsules(self.pyramid(maps)))
        code = self.vector_decoder(vector).reshape(-1, CODE, *self.config.grid)
        joined = F.pixel_shuffle(torch.cat([maps, code], 1), 2)
        rebuilt: Tensor = self.image_decoder(joined).float()
        if rebuilt.shape != images.shape:
            rebuilt = F.interpolate(rebuilt, images.shape[-2:], mode="bilinear")
        return rebuilt.tanh()

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return MSE − SSIM + perceptual error of the reconstruction.

        Raises:
            DataError: a single image to learn from.
        """
        if self.training and len(images) < 2:  # batch norm has no variance of one vector
            raise DataError("piade needs at least 2 good images to learn from beside those held out, got 1")
        rebuilt = self.reconstruct(images)
        return F.mse_loss(rebuilt, images) - mean_ssim(rebuilt, images) + self._seen_error(rebuilt, images).mean()

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return colour errors and, as a fourth channel, the root of 1 − SSIM; and MSE + 1 − SSIM + perceptual error.

        The sum of their squares is metalad's map; the paper has none. The own score is the paper's plus 1.
        """
        rebuilt = self.reconstruct(images)
        ssim = ssim_map(rebuilt, images)
        rim = (WINDOW // 2,) * 4
        structure = F.pad((1 - ssim.mean(1, keepdim=True)).clamp_min(0), rim, mode="replicate")
        residual = torch.cat([rebuilt - images, structure.sqrt()], 1)
        score = (rebuilt - images).square().mean((1, 2, 3)) + 1 - ssim.mean((1, 2, 3))
        return Residuals(residual, rebuilt.clamp(0, 1), score + self._seen_error(rebuilt, images))

    def _attend(self, place: Place, maps: Tensor) -> Tensor:
        attended: Tensor = self.attention[place](maps)
        return attended

    def _seen_error(self, rebuilt: Tensor, images: Tensor) -> Float[Tensor, " batch"]:
        (seen,), (wanted,) = self.judge_network(rebuilt), self.judge_network(images)
        away: Tensor = (seen - wanted).float().square() / self.seen_variance
        return away.mean((1, 2, 3))


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
    """From twice the last map's size to the image's: 8, 15, 29, 60, 120."""
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
