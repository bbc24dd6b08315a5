"""Calibration: what a residual means on this product, learnt from normal images alone.

A residual on good images is not flat. Edges and fine texture are always rebuilt badly, and colours err together.
So a run learns the second moments of its residual on normal images and measures every residual in units of them:
the calibrated map is a squared Mahalanobis distance divided by the number of channels, about 1 on good images.

The moments may depend on the place (aligned objects), on the content (objects that turn), or on nothing; the
likelihood of held-out normal residuals chooses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from metalad.detectors.density.log_distance import NormalizedLogDistance, as_map
from metalad.detectors.residuals import Residuals
from metalad.nn.smoothing import Smoothing

Kind = Literal["none", "content", "position"]
KINDS: tuple[Kind, ...] = ("none", "content", "position")

PRIOR_IMAGES = 20.0
"""A cell's moments are drawn to the global ones as if this many further images had shown those: a variance taken
too small costs more, in false alarms, than one too large."""
CHOICE_PRIOR_IMAGES = 2.0
"""The same while the kind is chosen: a strong prior would blur what the likelihood is asked about."""
MIN_VARIANCE = 1e-5
"""Added to every variance: (0.8 of 255 grey levels)². No residual is known better than the pixel's own rounding."""
POOLING_SIGMA = 1.0
"""Neighbouring places share moments: a Gaussian of this many pixels."""
EDGE_SIGMA = 1.5
EDGE_BINS = 16
BRIGHTNESS_BINS = 8


@dataclass(frozen=True)
class CalibrationSummary:
    """Which kind was chosen, and each kind's mean log-likelihood of a held-out normal pixel, in nats."""

    kind: Kind
    log_likelihood: Mapping[str, float]


class Content(nn.Module):
    """Sort the pixels of a reconstruction into cells by the strength of edges and the brightness around them."""

    edge_bounds: Tensor
    brightness_bounds: Tensor

    def __init__(self, edge_bounds: Tensor, brightness_bounds: Tensor, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("edge_bounds", edge_bounds)
        self.register_buffer("brightness_bounds", brightness_bounds)
        self.smoothing = Smoothing(height, width, EDGE_SIGMA)

    @classmethod
    def fit(cls, expected: Float[Tensor, "images 3 height width"]) -> "Content":
        """Bound the cells by quantiles of the given reconstructions."""
        height, width = expected.shape[-2:]
        content = cls(torch.zeros(EDGE_BINS - 1), torch.zeros(BRIGHTNESS_BINS - 1), height, width)
        edges, brightness = content.features(expected)
        content.edge_bounds = _quantile_bounds(edges, EDGE_BINS)
        content.brightness_bounds = _quantile_bounds(brightness, BRIGHTNESS_BINS)
        return content

    def features(
        self, expected: Float[Tensor, "images 3 height width"]
    ) -> tuple[Float[Tensor, "images height width"], Float[Tensor, "images height width"]]:
        """Return the edge strength (root mean squared gradient) and the brightness of each pixel."""
        grey = expected.mean(1)
        padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
        down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
        return self.smoothing(across**2 + down**2).sqrt(), grey

    def forward(self, expected: Float[Tensor, "images 3 height width"]) -> Int[Tensor, "images height width"]:
        """Return each pixel's cell, in [0, 128)."""
        edges, brightness = self.features(expected)
        # Sums of comparisons rather than torch.bucketize: they export, and the bounds are few.
        edge = (edges[..., None] > self.edge_bounds).sum(-1)
        return edge * BRIGHTNESS_BINS + (brightness[..., None] > self.brightness_bounds).sum(-1)


class Calibration(nn.Module):
    """Measure residuals in units of their second moments on normal images.

    whitening: [cells, channels, channels], W with WᵀW the inverse moment; the cells are all places in reading
        order ("position"), all contents ("content"), or one ("none").
    surprise: the units in which the evidence's further distances and this one become one map, if there are any.
    """

    whitening: Tensor

    def __init__(
        self, kind: Kind, whitening: Tensor, content: Content | None, log_distance: NormalizedLogDistance | None = None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.content = content
        self.log_distance = log_distance
        self.register_buffer("whitening", whitening)

    @classmethod
    def fit(cls, kind: Kind, residuals: Residuals, prior_images: float = PRIOR_IMAGES) -> "Calibration":
        """Learn the moments of the residuals of normal images."""
        content = Content.fit(_expected(residuals)) if kind == "content" else None
        fitted = cls(kind, _whitening(_moments(kind, content, residuals, prior_images)), content)
        if residuals.distances is not None:
            fitted.log_distance = NormalizedLogDistance(1 + residuals.distances.shape[1])
            # Every other pixel each way: neighbours say nearly the same.
            fitted.log_distance.fit([distance[..., ::2, ::2] for distance in fitted.distances(residuals)])
        return fitted

    def whiten(self, residuals: Residuals) -> Float[Tensor, "batch channels height width"]:
        """Return residuals whose second moments on normal images are the identity."""
        residual = residuals.values
        if self.content is not None:
            cells = self.content(_expected(residuals))
            whitened: Tensor = torch.einsum("nhwij,njhw->nihw", self.whitening[cells], residual)
            return whitened
        height, width = residual.shape[-2:]
        shape = (height, width) if self.kind == "position" else (1, 1)
        whitening = self.whitening.reshape(*shape, *self.whitening.shape[1:]).permute(2, 3, 0, 1)
        return (whitening * residual[:, None]).sum(2)

    def forward(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the squared Mahalanobis distance of each pixel's residual, a channel: about 1 on good images.

        Where the evidence has further distances, return all of them as one, in tail units: about 0 on good images,
        and 1 where the mean one says what one good pixel in a hundred reaches.
        """
        distances = self.distances(residuals)
        if self.log_distance is None:
            return distances[0]
        return as_map(self.log_distance(distances))

    def distances(self, residuals: Residuals) -> list[Float[Tensor, "batch height width"]]:
        """Return the residual's squared Mahalanobis distance, a channel, and the evidence's further distances."""
        own = self.whiten(residuals).square().mean(1)
        return [own] if residuals.distances is None else [own, *residuals.distances.unbind(1)]

    def log_likelihood(self, residuals: Residuals) -> float:
        """Return the mean log-density of a pixel's residual under a normal law with these moments, in nats."""
        whitened = self.whiten(residuals)
        volume = torch.linalg.slogdet(self.whitening.double()).logabsdet
        if self.content is not None:
            volume = volume[self.content(_expected(residuals))]
        constant = whitened.shape[1] / 2 * torch.log(torch.tensor(2 * torch.pi))
        return float(volume.mean() - whitened.double().square().sum(1).mean() / 2 - constant)


def choose(training: Residuals, held_out: Residuals) -> CalibrationSummary:
    """Choose the kind whose moments, learnt on `training`, make the held-out normal residuals likeliest.

    A network rebuilds what it was trained on better than what it was not; the training residuals are first
    brought to the held-out ones' overall size, so that all kinds start even.
    """
    scale = float((held_out.values.square().mean() / training.values.square().mean().clamp_min(1e-12)).sqrt())
    training = training._replace(values=training.values * scale, distances=None)
    kinds = KINDS if training.expected is not None else tuple(kind for kind in KINDS if kind != "content")
    scores: dict[str, float] = {
        kind: Calibration.fit(kind, training, CHOICE_PRIOR_IMAGES).log_likelihood(held_out) for kind in kinds
    }
    return CalibrationSummary(max(kinds, key=lambda kind: scores[kind]), scores)


def _expected(residuals: Residuals) -> Tensor:
    return cast(Tensor, residuals.expected)


def _quantile_bounds(values: Tensor, bins: int) -> Tensor:
    # torch.quantile refuses more than 2**24 values; every k-th is as good.
    flat = values.flatten()
    flat = flat[:: max(1, len(flat) // 1_000_000)]
    return torch.quantile(flat, torch.linspace(0, 1, bins + 1)[1:-1])


def _moments(
    kind: Kind, content: Content | None, residuals: Residuals, prior_images: float
) -> Float[Tensor, "cells channels channels"]:
    residual = residuals.values
    images, _, height, width = residual.shape
    overall: Tensor = torch.einsum("nihw,njhw->ij", residual, residual)[None] / (images * height * width)
    if kind == "none":
        return overall
    if content is None:
        sums: Tensor = torch.einsum("nihw,njhw->ijhw", residual, residual)
        sums = Smoothing(height, width, POOLING_SIGMA)(sums).flatten(2).permute(2, 0, 1)
        return (sums + prior_images * overall) / (images + prior_images)
    cells = content(_expected(residuals)).flatten()
    count = EDGE_BINS * BRIGHTNESS_BINS
    products = torch.einsum("nihw,njhw->nhwij", residual, residual).flatten(0, 2)
    sums = torch.zeros(count, *products.shape[1:]).index_add_(0, cells, products)
    prior = prior_images * height * width / count
    return (sums + prior * overall) / (torch.bincount(cells, minlength=count)[:, None, None] + prior)


def _whitening(moments: Float[Tensor, "cells channels channels"]) -> Float[Tensor, "cells channels channels"]:
    identity = torch.eye(moments.shape[-1], dtype=torch.double)
    regularized = moments.double() + MIN_VARIANCE * identity
    factor, failed = torch.linalg.cholesky_ex(regularized)
    if failed.any():
        # Of channels that agree nearly wholly, sums in single precision can leave a variance well below 0.
        values, vectors = torch.linalg.eigh(regularized[failed > 0])
        mended = vectors * values.clamp_min(MIN_VARIANCE)[:, None] @ vectors.mT
        factor[failed > 0] = torch.linalg.cholesky(mended)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    return inverse.float()
