"""OCGAN (Perera, Nallapati & Xiang 2019, arXiv:1903.08550).

A denoising autoencoder is trained so that its codes are uniform in the cube (-1, 1)^n and its decoder generates a good
image from every code in the cube. Then it can only reconstruct good images. Informative-negative mining searches for
codes whose generated image is still bad.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, GradientDetector, Protocol
from metalad.detectors.gan import (
    Stage,
    adversarial_loss,
    initialize_weights,
    parameters_of,
    signed,
    strided_convolutions,
    transposed_convolutions,
    unsigned,
)
from metalad.detectors.residuals import Residuals
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Learner, Objective, Training

BETAS = (0.5, 0.999)
CODE_WEIGHT = 10.0
"""Weight of the latent discriminator in the autoencoder's loss."""
SIDES = (29, 61, 125)
"""Image sides that 3, 4 or 5 unpadded 5×5 convolutions of stride 2 reduce to exactly one pixel."""


@dataclass(frozen=True, kw_only=True)
class OcGanConfig(DetectorConfig):
    """Settings of OCGAN; the defaults are those of the authors' code."""

    image_size: tuple[int, int] = setting((61, 61), "height and width that images are resized to: 29, 61 or 125 pixels")
    smoothing_sigma: float = setting(1.0, "sigma of the Gaussian smoothing of the map, in resized pixels; 0 = off")
    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "own", "image score: own: mean squared error; or the map's maximum, mean, or mean of its highest 1 %"
    )
    width: int = setting(64, "channels after the first convolution; the other widths are multiples")
    latent: int = setting(16, "length of the latent code")
    noise: float = setting(0.2, "standard deviation of the noise on training images, for values in [-1, 1]")
    reconstruction_weight: float = setting(10.0, "weight of half the mean squared error in the autoencoder's loss")
    mining_steps: int = setting(1, "gradient steps of mining, from a random code; paper: 5")
    mining_rate: float = setting(2.0, "learning rate of these steps")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        height, width = self.image_size
        if height != width or height not in SIDES:
            raise ConfigError(f"image_size is {height}x{width}; ocgan needs squares of 29, 61 or 125 pixels")
        if min(self.width, self.latent, self.mining_steps) < 1:
            raise ConfigError("width, latent and mining_steps must be at least 1")
        if min(self.noise, self.reconstruction_weight, self.mining_rate) < 0:
            raise ConfigError("noise, reconstruction_weight and mining_rate must not be negative")


class OcGan(GradientDetector):
    """OCGAN: an autoencoder, discriminators of codes and of images, and a classifier for mining."""

    name = "ocgan"
    has_own_score = True
    config: OcGanConfig

    def __init__(self, config: OcGanConfig) -> None:
        super().__init__(config)
        halvings = int(math.log2(config.image_size[0] + 3)) - 2
        widths = [2**number for number in range(halvings - 1)]
        inner = [config.width * factor for factor in widths]
        self.encoder = nn.Sequential(downsampling([3, *inner, config.latent]), nn.Tanh())
        self.decoder = nn.Sequential(
            transposed_convolutions([config.latent, *inner[::-1]], kernel=5, padding=0),
            nn.Dropout(0.5),
            nn.ConvTranspose2d(inner[0], 3, 5, 2),
            nn.Tanh(),
        )
        discriminator_width = max(1, 12 * config.width // 64)
        self.image_discriminator = downsampling([3, *(discriminator_width * factor for factor in widths), 1])
        self.classifier = downsampling([3, *inner, 1])
        self.code_discriminator = nn.Sequential(
            nn.Flatten(), nn.Linear(config.latent, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32),
            nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1),
        )  # fmt: skip
        initialize_weights(self)

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return 150 epochs with random codes and 51 with mined ones, as published, or fewer steps of small batches."""
        if protocol == "paper":
            plan = Training(
                stage="random", learning_rate=2e-4, betas=BETAS, batch_size=512, max_epochs=150, keep="last"
            )
            return plan, replace(plan, stage="mined", max_epochs=51)
        plan = Training(
            stage="random", learning_rate=2e-4, betas=BETAS, batch_size=16, steps=450, keep="last", whole_batches=True
        )
        return plan, replace(plan, stage="mined", steps=150)

    def learner(self, stage: str) -> Learner:
        """Return all networks, with random codes or, in the stage `mined`, mined codes."""
        codes = self.mined_codes if stage == "mined" else self._random_codes
        autoencoder = Objective(
            lambda images: self._autoencoder_loss(images, codes(len(images))), parameters_of(self.encoder, self.decoder)
        )
        discriminators = Objective(
            self._discriminators_loss, parameters_of(self.image_discriminator, self.code_discriminator)
        )
        classifier = Objective(self._classifier_loss, parameters_of(self.classifier))
        networks = self.encoder, self.decoder, self.image_discriminator, self.classifier, self.code_discriminator
        return Stage(networks, (autoencoder, discriminators, classifier), self.loss)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the mean squared reconstruction error of images in [0, 1], on the scale [-1, 1], without noise."""
        return F.mse_loss(self.reconstruct(images), signed(images))

    def reconstruct(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Reconstruct images in [0, 1] from their codes; the result is in [-1, 1]."""
        reconstruction: Tensor = self.decoder(self.encoder(signed(images)))
        return reconstruction.float()

    def mined_codes(self, count: int) -> Float[Tensor, "count latent 1 1"]:
        """Sample codes, and move each towards one whose image the classifier labels as fake (section 3.4)."""
        pre_tanh_codes = self._random_codes(count)
        with torch.enable_grad():
            for _ in range(self.config.mining_steps):
                pre_tanh_codes.requires_grad_()
                logits = self.classifier(self.decoder(pre_tanh_codes.tanh()))
                # `count` times the mean is the sum over images: each code moves by its own gradient.
                (gradient,) = torch.autograd.grad(count * adversarial_loss(logits, real=False), pre_tanh_codes)
                pre_tanh_codes = (pre_tanh_codes - self.config.mining_rate * gradient).detach()
        return pre_tanh_codes.tanh()

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return reconstruction minus image, and the mean squared error as the image score."""
        reconstruction = self.reconstruct(images)
        score = (reconstruction - signed(images)).square().flatten(1).mean(1)
        return Residuals(unsigned(reconstruction) - images, unsigned(reconstruction), score)

    def _random_codes(self, count: int) -> Tensor:
        """Sample codes uniformly from the cube (-1, 1)^n."""
        return 2 * torch.rand(count, self.config.latent, 1, 1, device=self.device) - 1

    def _noisy(self, images: Tensor) -> Tensor:
        return signed(images) + self.config.noise * torch.randn_like(images)

    def _autoencoder_loss(self, images: Tensor, codes: Tensor) -> Tensor:
        """Return the sum of latent adversarial, visual adversarial and reconstruction loss (eq. 7 and algorithm 1)."""
        encoded = self.encoder(self._noisy(images))
        error = F.mse_loss(self.decoder(encoded).float(), signed(images)) / 2
        latent_loss = adversarial_loss(self.code_discriminator(encoded), real=True)
        visual_loss = adversarial_loss(self.image_discriminator(self.decoder(codes)), real=True)
        return CODE_WEIGHT * latent_loss + visual_loss + self.config.reconstruction_weight * error

    def _discriminators_loss(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            codes, generated = self._random_codes(len(images)), self.decoder(self._random_codes(len(images)))
            encoded = self.encoder(self._noisy(images))
        image_logits = (self.image_discriminator(signed(images)), self.image_discriminator(generated))
        code_logits = (self.code_discriminator(codes), self.code_discriminator(encoded))
        return _discrimination_loss(*image_logits) + _discrimination_loss(*code_logits)

    def _classifier_loss(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            reconstruction = self.decoder(self.encoder(self._noisy(images)))
            generated = self.decoder(self._random_codes(len(images)))
        return _discrimination_loss(self.classifier(reconstruction), self.classifier(generated))


def downsampling(channels: list[int]) -> nn.Sequential:
    """Stack unpadded 5×5 convolutions of stride 2 down to one pixel; the last has no activation."""
    return nn.Sequential(
        strided_convolutions(channels[:-1], kernel=5, padding=0), nn.Conv2d(channels[-2], channels[-1], 5, 2)
    )


def _discrimination_loss(real: Tensor, fake: Tensor) -> Tensor:
    return (adversarial_loss(real, real=True) + adversarial_loss(fake, real=False)) / 2
