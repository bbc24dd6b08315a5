"""f-AnoGAN (Schlegl et al. 2019, DOI 10.1016/j.media.2019.01.010).

A Wasserstein GAN is trained to generate good images from random latent codes. Then the GAN is frozen and an encoder is
trained to find the code that reproduces a good image. The difference between image and reconstruction is the residual.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.base import GradientDetector, Protocol
from metalad.detectors.gan import (
    EPOCH_IMAGES,
    GanConfig,
    Stage,
    bottleneck_size,
    gradient_penalty,
    parameters_of,
    signed,
    unsigned,
)
from metalad.detectors.residuals import Residuals
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Learner, Objective, Training

PENALTY_WEIGHT = 10.0
CRITIC_STEPS = 5
"""Critic steps per generator step."""
Norm = Literal["batch", "layer"]

HALVINGS = 4
GAN_EPOCHS, ENCODER_STEPS = 100, 50_000


@dataclass(frozen=True, kw_only=True)
class FAnoGanConfig(GanConfig):
    """Settings of f-AnoGAN; the published networks have width 64, 24.56M parameters."""

    image_size: tuple[int, int] = setting((64, 64), "height and width that images are resized to, in pixels")
    smoothing_sigma: float = setting(1.0, "sigma of the Gaussian smoothing of the map, in resized pixels; 0 = off")
    latent: int = setting(128, "length of the latent code")
    kappa: float = setting(1.0, "weight of the critic-feature error in the encoder's loss and the score; image: 1")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        bottleneck_size(self.image_size, HALVINGS)
        if not self.kappa >= 0:
            raise ConfigError(f"kappa is {self.kappa}; it must not be negative")


class FAnoGan(GradientDetector):
    """f-AnoGAN: generator, critic, and encoder."""

    name = "f_anogan"
    has_own_score = True
    config: FAnoGanConfig

    def __init__(self, config: FAnoGanConfig) -> None:
        super().__init__(config)
        height, width = bottleneck_size(config.image_size, HALVINGS)
        widths = [factor * config.width for factor in (1, 2, 4, 8, 8)]
        self.generator = Generator(config.latent, widths[::-1], (height, width))
        self.critic = DownsamplingNetwork(widths, height * width, 1, "layer")
        self.encoder = DownsamplingNetwork(widths, height * width, config.latent, "batch")

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the GAN's stage and the encoder's: as in the paper's code, or fewer, smaller steps."""
        if protocol == "paper":
            gan = Training(
                stage="gan",
                learning_rate=1e-4,
                betas=(0.0, 0.9),
                batch_size=64,
                steps=GAN_EPOCHS * EPOCH_IMAGES // 64,
                keep="last",
            )
            encoder = Training(
                stage="encoder", learning_rate=5e-5, optimizer="rmsprop", steps=ENCODER_STEPS, keep="last"
            )
        else:
            gan = Training(
                stage="gan", learning_rate=1e-3, betas=(0.0, 0.9), batch_size=16, steps=1000, keep="last",
                whole_batches=True,
            )  # fmt: skip
            encoder = Training(
                stage="encoder", learning_rate=5e-4, optimizer="rmsprop", batch_size=16, steps=1000, whole_batches=True
            )
        return gan, encoder

    def learner(self, stage: str) -> Learner:
        """Return the GAN, or the encoder with the GAN frozen."""
        if stage == "gan":
            critic = Objective(self._critic_loss, parameters_of(self.critic))
            generator = Objective(self._generator_loss, parameters_of(self.generator), every=CRITIC_STEPS)
            return Stage((self.generator, self.critic), (critic, generator), self._held_out_loss)
        encoder = Objective(lambda images: self.loss(self.config.augmented(images)), parameters_of(self.encoder))
        return Stage((self.encoder,), (encoder,), self.loss)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the encoder's loss, izi_f (eq. 5): image error plus weighted error of the critic's features."""
        return self.errors(signed(images), self.reconstruct(images)).mean()

    def reconstruct(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Reconstruct images in [0, 1] from their codes; the result is in [-1, 1]."""
        reconstruction: Tensor = self.generator(self.encoder(signed(images)).tanh())
        return reconstruction.float()

    def errors(
        self, images: Float[Tensor, "batch 3 height width"], reconstruction: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, " batch"]:
        """Return the mean squared error of each image in [-1, 1], plus kappa times that of its features (eq. 5, 7)."""
        image_error = (images - reconstruction).square().flatten(1).mean(1)
        difference = self.critic.features(images).float() - self.critic.features(reconstruction).float()
        return image_error + self.config.kappa * difference.square().mean(1)

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return reconstruction minus image, and the paper's image score."""
        reconstruction = self.reconstruct(images)
        return Residuals(
            unsigned(reconstruction) - images, unsigned(reconstruction), self.errors(signed(images), reconstruction)
        )

    def _fake_images(self, images: Tensor) -> Tensor:
        generated: Tensor = self.generator(torch.randn(len(images), self.config.latent, device=images.device))
        return generated.float()

    def _critic_loss(self, images: Tensor) -> Tensor:
        real = self.config.augmented(images)
        with torch.no_grad():
            fake = self._fake_images(images)
        penalty = gradient_penalty(self.critic, signed(real), fake)
        return self._mean_critic_output(fake) - self._mean_critic_output(signed(real)) + PENALTY_WEIGHT * penalty

    def _generator_loss(self, images: Tensor) -> Tensor:
        return -self._mean_critic_output(self._fake_images(images))

    def _held_out_loss(self, images: Tensor) -> Tensor:
        """Return the critic's loss without the gradient penalty, which would need gradients."""
        return self._mean_critic_output(self._fake_images(images)) - self._mean_critic_output(signed(images))

    def _mean_critic_output(self, images: Tensor) -> Tensor:
        """Return the critic's mean output for images in [-1, 1]; higher = more like real images."""
        outputs: Tensor = self.critic(images)
        return outputs.float().mean()


class ResidualBlock(nn.Module):
    """Pre-activation residual block that doubles or halves the spatial size (Gulrajani 2017).

    norm: batch norm, or layer norm with one gain per channel, which does not mix the images of a batch.
    """

    def __init__(self, before: int, after: int, size: Literal["double", "halve"], norm: Norm) -> None:
        super().__init__()
        middle = after if size == "double" else before
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(count) if norm == "batch" else nn.GroupNorm(1, count) for count in (before, middle)
        )
        self.first = nn.Conv2d(before, middle, 3, padding=1, bias=False)
        self.second = nn.Conv2d(middle, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)
        self.size = size

    def forward(self, features: Float[Tensor, "batch before h w"]) -> Float[Tensor, "batch after h2 w2"]:
        """Return the block's output, twice or half as high and wide."""
        inner, around = F.relu(self.norms[0](features)), features
        if self.size == "double":
            inner, around = (F.interpolate(part, scale_factor=2.0) for part in (inner, around))
        inner = self.second(F.relu(self.norms[1](self.first(inner))))
        if self.size == "halve":
            inner, around = (F.avg_pool2d(part, 2) for part in (inner, around))
        joined: Tensor = inner + self.shortcut(around)
        return joined


class Generator(nn.Module):
    """Maps a code to an image in [-1, 1], through feature maps of the given widths."""

    def __init__(self, latent: int, widths: list[int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.start = nn.Linear(latent, widths[0] * grid[0] * grid[1])
        pairs = pairwise(widths)
        self.blocks = nn.Sequential(*(ResidualBlock(before, after, "double", "batch") for before, after in pairs))
        self.end = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.Conv2d(widths[-1], 3, 3, padding=1), nn.Tanh()
        )

    def forward(self, codes: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch 3 height width"]:
        """Return one image per code."""
        generated: Tensor = self.end(self.blocks(self.start(codes).unflatten(1, (-1, *self.grid))))
        return generated


class DownsamplingNetwork(nn.Module):
    """Maps an image in [-1, 1] to a vector: the critic's single value, or the encoder's code."""

    def __init__(self, widths: list[int], positions: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        pairs = pairwise(widths)
        blocks = (ResidualBlock(before, after, "halve", norm) for before, after in pairs)
        self.body = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1), *blocks, nn.Flatten())
        self.end = nn.Linear(positions * widths[-1], outputs)

    def features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return the flattened last feature map."""
        flat: Tensor = self.body(images)
        return flat

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch outputs"]:
        """Return the output vector."""
        output: Tensor = self.end(self.features(images))
        return output
