"""LSA, latent space autoregression (Abati et al., CVPR 2019, arXiv:1807.01653).

An autoencoder is trained together with an autoregressive estimator of its code's likelihood: each element of the code
is predicted from the preceding elements. The anomaly score is the sum of the reconstruction error and the negative
log-likelihood of the code, each scaled to the range of good images.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, Protocol
from metalad.detectors.reconstruction import Reconstructor
from metalad.detectors.residuals import Residuals
from metalad.nn.pixels import Pixels, to_batch
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Training

HALVINGS = 3
BATCH_SIZE = 32
"""Images per batch when the score ranges are fitted."""
LEAST_RANGE = 1e-3
"""Least range of a score, relative to its maximum; good images may all have the same score."""


@dataclass(frozen=True, kw_only=True)
class LsaConfig(DetectorConfig):
    """Settings of LSA; 36.8M parameters, 25.8M of them the estimator's."""

    image_size: tuple[int, int] = setting((64, 64), "height and width that images are resized to, in pixels")
    smoothing_sigma: float = setting(2.0, "sigma of the Gaussian smoothing of the map, in resized pixels; 0 = off")
    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "own", "image score: the map's maximum, its mean, the mean of its highest 1 %, or the method's own"
    )
    code: int = setting(64, "length of the latent code; its elements are in [0, 1]")
    bins: int = setting(100, "bins of [0, 1]; the estimator predicts the bin of each code element")
    width: int = setting(32, "channels of the first layer; the last layers have eight times as many")
    estimator_width: int = setting(32, "features per code element in the estimator")
    likelihood_weight: float = setting(1.0, "weight of the code's negative log-likelihood in the loss")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        height, width = self.image_size
        if height % 2**HALVINGS or width % 2**HALVINGS:
            raise ConfigError(f"lsa halves {height}x{width} pixels {HALVINGS} times; use multiples of {2**HALVINGS}")
        if min(self.code, self.width, self.estimator_width) < 1 or self.bins < 2:
            raise ConfigError("code, width and estimator_width must be at least 1, bins at least 2")
        if not 0 <= self.likelihood_weight < float("inf"):
            raise ConfigError(f"likelihood_weight is {self.likelihood_weight}; it must be finite and at least 0")


class Lsa(Reconstructor):
    """An autoencoder and the likelihood estimator of its code.

    lowest, ranges: [2], minimum and range of negative log-likelihood and squared error on held-out good images.
    """

    name = "lsa"
    has_own_score = True
    not_exportable = (
        "the score has steps, one at each edge of a bin of a code element; an element that other runtimes round "
        "across an edge changes it by percents"
    )
    config: LsaConfig
    lowest: Tensor
    ranges: Tensor

    def __init__(self, config: LsaConfig) -> None:
        super().__init__(config)
        width = config.width
        grid = (8 * width, config.image_size[0] >> HALVINGS, config.image_size[1] >> HALVINGS)
        flat = grid[0] * grid[1] * grid[2]
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, bias=False),
            nn.LeakyReLU(),
            Block(width, width, "same"),
            *(Block(width << step, width << step + 1, "down") for step in range(HALVINGS)),
            nn.Flatten(),
            *_dense(flat, 8 * width),
        )
        self.to_code = nn.Linear(8 * width, config.code)
        self.decoder = nn.Sequential(
            *_dense(config.code, 8 * width),
            *_dense(8 * width, flat),
            nn.Unflatten(1, grid),
            *(Block(width << step + 1, width << step, "up") for step in reversed(range(HALVINGS))),
            Block(width, width, "same"),
            nn.Conv2d(width, 3, 1, bias=False),
        )
        self.estimator = Estimator(config.code, config.estimator_width, config.bins)
        self.register_buffer("lowest", torch.zeros(2))
        self.register_buffer("ranges", torch.ones(2))

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return long training at a low rate (the paper does not state its own), or short training at a higher rate."""
        if protocol == "paper":
            return (Training(learning_rate=1e-4, batch_size=64, max_epochs=1000, whole_batches=True),)
        return (Training(learning_rate=2e-3, batch_size=8, steps=400, schedule="cosine", whole_batches=True),)

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch code"]:
        """Return the codes of images, in [0, 1]."""
        features = self.encoder(images)
        with torch.autocast(images.device.type, enabled=False):  # half precision does not resolve the bins
            code: Tensor = self.to_code(features.float()).sigmoid()
        return code

    def decode(self, code: Float[Tensor, "batch code"]) -> Float[Tensor, "batch 3 height width"]:
        """Return the decoded images."""
        images: Tensor = self.decoder(code)
        return images.float()

    def negative_log_likelihoods(self, code: Float[Tensor, "batch code"]) -> Float[Tensor, " batch"]:
        """Return the negative log-likelihood of codes, in nats."""
        # The bin index has no gradient. The encoder gets gradients through the elements that predict later ones.
        bins = (code.detach() * self.config.bins).long().clamp_max(self.config.bins - 1)
        return F.cross_entropy(self.estimator(code).transpose(1, 2), bins, reduction="none").sum(1)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the squared error, summed over pixels, plus the weighted negative log-likelihood; mean over images."""
        if self.training and len(images) == 1:
            images = images.expand(2, -1, -1, -1)  # batch normalization of vectors needs two
        code = self.encode(images)
        errors = _squared_error(self.decode(code), images)
        return (errors + self.config.likelihood_weight * self.negative_log_likelihoods(code)).mean()

    def reconstruct(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Reconstruct images; values are near [0, 1] but not clipped."""
        return self.decode(self.encode(images))

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Fit the ranges of the two scores on the held-out images, or on all images if only one is held out."""
        pixels = held_out if len(held_out) > 1 else np.concatenate([training, held_out])
        with torch.no_grad():
            parts = [
                torch.stack(self._scores(to_batch(pixels[start : start + BATCH_SIZE], self.device))[1:], 1)
                for start in range(0, len(pixels), BATCH_SIZE)
            ]
        low, high = torch.cat(parts).aminmax(dim=0)
        self.lowest = low
        self.ranges = (high - low).maximum(LEAST_RANGE * high.abs()).clamp_min(1e-12)

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return reconstruction minus image, and the paper's image score.

        The score is the sum of both scores, each scaled so that held-out good images lie in [0, 1], passed through
        softplus, which makes it positive and keeps the order.
        """
        reconstruction, *scores = self._scores(images)
        scaled = (torch.stack(scores, 1) - self.lowest) / self.ranges
        return Residuals(reconstruction - images, reconstruction.clamp(0, 1), F.softplus(scaled.sum(1)))

    def _scores(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction, the negative log-likelihood and the squared error."""
        code = self.encode(images)
        reconstruction = self.decode(code)
        return reconstruction, self.negative_log_likelihoods(code), _squared_error(reconstruction, images)


class Estimator(nn.Module):
    """Masked dense layers that predict each element of a code, as logits over bins, from the preceding elements."""

    def __init__(self, code: int, width: int, bins: int) -> None:
        super().__init__()
        widths = (1, width, width, width, width, bins)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            layers += [MaskedLinear(code, before, after, strict=number == 0), nn.LeakyReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.code, self.bins = code, bins

    def forward(self, code: Float[Tensor, "batch code"]) -> Float[Tensor, "batch code bins"]:
        """Return the bin logits of each element."""
        logits: Tensor = self.layers(code)
        return logits.reshape(-1, self.code, self.bins).float()


class MaskedLinear(nn.Linear):
    """A dense layer from `before` to `after` features per code element, masked to exclude later elements.

    strict: also exclude the element itself, as needed in the first layer.
    """

    mask: Tensor

    def __init__(self, code: int, before: int, after: int, *, strict: bool) -> None:
        super().__init__(code * before, code * after)
        allowed = torch.ones(code, code).tril(-1 if strict else 0)
        mask = allowed.repeat_interleave(after, 0).repeat_interleave(before, 1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, features: Float[Tensor, "batch before"]) -> Float[Tensor, "batch after"]:
        """Apply the layer; the features of an element are contiguous."""
        return F.linear(features, self.weight * self.mask, self.bias)


class Block(nn.Module):
    """A residual block that keeps, halves or doubles the spatial size."""

    def __init__(self, before: int, after: int, kind: Literal["same", "down", "up"]) -> None:
        super().__init__()
        first: nn.Module
        if kind == "up":
            first = nn.ConvTranspose2d(before, after, 5, 2, 2, 1, bias=False)
            shortcut = [nn.ConvTranspose2d(before, after, 1, 2, 0, 1, bias=False), nn.BatchNorm2d(after)]
        else:
            stride = 2 if kind == "down" else 1
            first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            shortcut = [nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)]
        self.body = nn.Sequential(
            first,
            nn.BatchNorm2d(after),
            nn.LeakyReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Identity() if kind == "same" else nn.Sequential(*shortcut)

    def forward(self, features: Float[Tensor, "batch before height width"]) -> Float[Tensor, "batch after _ _"]:
        """Return the activated sum of the convolutional branch and the shortcut."""
        return F.leaky_relu(self.body(features) + self.shortcut(features))


def _dense(before: int, after: int) -> tuple[nn.Module, ...]:
    return nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.LeakyReLU()


def _squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    return (reconstruction - images).square().flatten(1).sum(1)
