"""VAE: a convolutional variational autoencoder (Baur et al. 2018; layers and loss of their comparative study, 2021).

An image is encoded as a Gaussian distribution over a code of 128 numbers; the loss keeps it close to the standard
Gaussian. The reconstruction is decoded from the mean. The anomaly map is the absolute reconstruction error.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.autoencoder import halvings
from metalad.detectors.base import DetectorConfig, Protocol
from metalad.detectors.reconstruction import Reconstructor
from metalad.detectors.residuals import Residuals
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Training

SLOPE = 0.3
"""Negative slope of the leaky ReLU; the default of Keras."""
DROPOUT = 0.1
GRID_CHANNELS = 16
"""Channels of the smallest map, before it is flattened."""


@dataclass(frozen=True, kw_only=True)
class VaeConfig(DetectorConfig):
    """Settings of the VAE; 1.76M parameters."""

    code: int = setting(128, "length of the latent code")
    width: int = setting(32, "channels of the first layer; the widest layers have four times as many")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        halvings(self.image_size, 1)
        if min(self.code, self.width) < 1:
            raise ConfigError("code and width must be at least 1")


class Vae(Reconstructor):
    """A variational autoencoder; at test time it decodes the mean, without sampling.

    The method's own image score is the negative ELBO, up to a constant, in nats.
    """

    name = "vae"
    has_own_score = True
    config: VaeConfig

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(config)
        count, width = halvings(config.image_size, 1), config.width
        down = [min(4, 2**step) * width for step in range(count)]
        up = [max(1, 4 // 2**step) * width for step in range(count)]
        grid = (GRID_CHANNELS, config.image_size[0] >> count, config.image_size[1] >> count)
        flat = GRID_CHANNELS * grid[1] * grid[2]
        self.encoder = nn.Sequential(
            *(_downsampling(before, after) for before, after in pairwise([3, *down])),
            nn.Conv2d(down[-1], GRID_CHANNELS, 1),
            nn.Flatten(),
        )
        self.mean = nn.Sequential(nn.Linear(flat, config.code), nn.Dropout(DROPOUT))
        self.log_deviation = nn.Sequential(nn.Linear(flat, config.code), nn.Dropout(DROPOUT))
        self.decoder = nn.Sequential(
            nn.Linear(config.code, flat),
            nn.Unflatten(1, grid),
            nn.Conv2d(GRID_CHANNELS, down[-1], 1),
            nn.BatchNorm2d(down[-1]),
            nn.ReLU(),
            *(_upsampling(before, after) for before, after in pairwise([down[-1], *up])),
            nn.Conv2d(up[-1], 3, 1),
        )

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the 2021 study's schedule, or a cosine schedule at a higher rate."""
        if protocol == "paper":
            return (Training(learning_rate=1e-4, batch_size=8, max_epochs=1000, patience=5),)
        return (Training(learning_rate=1e-3, batch_size=8, steps=900, schedule="cosine"),)

    def encode(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch code"], Float[Tensor, "batch code"]]:
        """Return the mean and the log standard deviation of each code element."""
        features = self.encoder(images)
        return self.mean(features).float(), self.log_deviation(features).float()

    def decode(self, code: Float[Tensor, "batch code"]) -> Float[Tensor, "batch 3 height width"]:
        """Return the decoded images."""
        images: Tensor = self.decoder(code)
        return images.float()

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the absolute error summed over pixels and colors, plus the divergence; mean over images.

        The code is sampled in training; for held-out images it is the mean.
        """
        mean, log_deviation = self.encode(images)
        code = mean + log_deviation.exp() * torch.randn_like(mean) if self.training else mean
        return _negative_elbo(self.decode(code), images, mean, log_deviation).mean()

    def reconstruct(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Reconstruct images from the mean of their codes; values are near [0, 1] but not clipped."""
        return self.decode(self.encode(images)[0])

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return reconstruction minus image, and the negative ELBO as the image score."""
        mean, log_deviation = self.encode(images)
        reconstruction = self.decode(mean)
        score = _negative_elbo(reconstruction, images, mean, log_deviation)
        return Residuals(reconstruction - images, reconstruction.clamp(0, 1), score)

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the absolute error, summed over colors."""
        return residuals.values.abs().sum(1)


def divergence(
    mean: Float[Tensor, "batch code"], log_deviation: Float[Tensor, "batch code"]
) -> Float[Tensor, " batch"]:
    """Return the Kullback-Leibler divergence of the Gaussian from the standard Gaussian, in nats."""
    return (mean.square() + (2 * log_deviation).exp() - 2 * log_deviation - 1).sum(1) / 2


def _negative_elbo(reconstruction: Tensor, images: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    return (reconstruction - images).abs().flatten(1).sum(1) + divergence(mean, log_deviation)


def _downsampling(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 5, stride=2, padding=2), nn.BatchNorm2d(after), nn.LeakyReLU(SLOPE))


def _upsampling(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(before, after, 5, stride=2, padding=2, output_padding=1),
        nn.BatchNorm2d(after),
        nn.LeakyReLU(SLOPE),
    )
