"""f-AnoGAN (Schlegl et al. 2019, DOI 10.1016/j.media.2019.01.010).

A Wasserstein GAN learns to draw good images from random codes. Then, with the GAN frozen, an encoder learns which code
gives back a good image. What the GAN cannot draw from the encoder's code is out of place.
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
    gradient_penalty,
    grid_of,
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
"""Steps of the critic for one of the generator."""
Norm = Literal["batch", "layer"]

HALVINGS = 4
GAN_EPOCHS, ENCODER_STEPS = 100, 50_000


@dataclass(frozen=True, kw_only=True)
class FAnoGanConfig(GanConfig):
    """Settings of f-AnoGAN; the published networks have width 64, 24.56M parameters."""

    image_size: tuple[int, int] = setting((64, 64), "height and width that images are resized to, in pixels")
    smoothing_sigma: float = setting(1.0, "Gaussian filter over the anomaly map, in pixels of that size; 0 = none")
    latent: int = setting(128, "length of the code that an image is drawn from")
    kappa: float = setting(1.0, "weight of the critic's features beside the image, in the encoder's loss and the score")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        grid_of(self.image_size, HALVINGS)
        if not self.kappa >= 0:
            raise ConfigError(f"kappa is {self.kappa}; it must not be negative")


class FAnoGan(GradientDetector):
    """f-AnoGAN: a generator, its critic, and an encoder."""

    name = "f_anogan"
    has_own_score = True
    config: FAnoGanConfig

    def __init__(self, config: FAnoGanConfig) -> None:
        super().__init__(config)
        height, width = grid_of(config.image_size, HALVINGS)
        widths = [factor * config.width for factor in (1, 2, 4, 8, 8)]
        self.generator = Generator(config.latent, widths[::-1], (height, width))
        self.critic = Downward(widths, height * width, 1, "layer")
        self.encoder = Downward(widths, height * width, config.latent, "batch")

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the GAN's stage and the encoder's: as in the paper's code, or fewer and smaller steps."""
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
            return Stage((self.generator, self.critic), (critic, generator), self._distance)
        encoder = Objective(lambda images: self.loss(self.config.augmented(images)), parameters_of(self.encoder))
        return Stage((self.encoder,), (encoder,), self.loss)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the encoder's loss, izi_f (eq. 5): the error of image and critic's features."""
        return self.errors(signed(images), self.rebuild(images)).mean()

    def rebuild(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Draw each image in [0, 1] anew from its code; in [-1, 1]."""
        drawn: Tensor = self.generator(self.encoder(signed(images)).tanh())
        return drawn.float()

    def errors(
        self, images: Float[Tensor, "batch 3 height width"], rebuilt: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, " batch"]:
        """Return the mean squared error of each image in [-1, 1], plus kappa times that of its features (eq. 5, 7)."""
        of_image = (images - rebuilt).square().flatten(1).mean(1)
        difference = self.critic.features(images).float() - self.critic.features(rebuilt).float()
        return of_image + self.config.kappa * difference.square().mean(1)

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return image drawn anew minus image, and the paper's image score."""
        rebuilt = self.rebuild(images)
        return Residuals(unsigned(rebuilt) - images, unsigned(rebuilt), self.errors(signed(images), rebuilt))

    def _fakes(self, images: Tensor) -> Tensor:
        drawn: Tensor = self.generator(torch.randn(len(images), self.config.latent, device=images.device))
        return drawn.float()

    def _critic_loss(self, images: Tensor) -> Tensor:
        real = self.config.augmented(images)
        with torch.no_grad():
            fake = self._fakes(images)
        penalty = gradient_penalty(self.critic, signed(real), fake)
        return self._preference(fake) - self._preference(signed(real)) + PENALTY_WEIGHT * penalty

    def _generator_loss(self, images: Tensor) -> Tensor:
        return -self._preference(self._fakes(images))

    def _distance(self, images: Tensor) -> Tensor:
        """Return the critic's loss without its penalty, which needs gradients."""
        return self._preference(self._fakes(images)) - self._preference(signed(images))

    def _preference(self, images: Tensor) -> Tensor:
        """Return the critic's mean verdict on images in [-1, 1]; higher = more like a real one."""
        verdicts: Tensor = self.critic(images)
        return verdicts.float().mean()


class Residual(nn.Module):
    """A residual block that norms and activates before it convolves, and doubles or halves the image (Gulrajani 2017).

    norm: batch norm, or layer norm with one gain a channel, which treats the images of a batch apart.
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
    """From a code to an image in [-1, 1], through feature maps of the given widths."""

    def __init__(self, latent: int, widths: list[int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.start = nn.Linear(latent, widths[0] * grid[0] * grid[1])
        pairs = pairwise(widths)
        self.blocks = nn.Sequential(*(Residual(before, after, "double", "batch") for before, after in pairs))
        self.end = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.Conv2d(widths[-1], 3, 3, padding=1), nn.Tanh()
        )

    def forward(self, codes: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch 3 height width"]:
        """Draw an image from each code."""
        drawn: Tensor = self.end(self.blocks(self.start(codes).unflatten(1, (-1, *self.grid))))
        return drawn


class Downward(nn.Module):
    """From an image in [-1, 1] to numbers: the critic's one, or the encoder's code."""

    def __init__(self, widths: list[int], places: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        pairs = pairwise(widths)
        blocks = (Residual(before, after, "halve", norm) for before, after in pairs)
        self.body = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1), *blocks, nn.Flatten())
        self.end = nn.Linear(places * widths[-1], outputs)

    def features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return the last feature map as one line."""
        flat: Tensor = self.body(images)
        return flat

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch outputs"]:
        """Return the numbers."""
        numbers: Tensor = self.end(self.features(images))
        return numbers
