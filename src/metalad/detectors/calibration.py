"""Calibration: residuals in units of good images.

A residual on good images is not flat: edges and fine texture are always reconstructed badly, and the errors of the
color channels are correlated. Calibration therefore estimates the second moments of the residual on good images, and
measures every residual in units of them: the calibrated map is a squared Mahalanobis distance divided by the number of
channels, about 1 on good images. Parts of the residual (see `Residuals.parts`) have a distance each.

The moments may depend on the position (aligned objects), on the content (objects that turn), or on nothing; the
likelihood of held-out residuals of good images selects one of the three.
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
from metalad.nn.whitening import whitening

Kind = Literal["none", "content", "position"]
KINDS: tuple[Kind, ...] = ("none", "content", "position")

PRIOR_IMAGES = 20.0
"""A cell's moments are shrunk towards the global ones, with the weight of this many images: a variance that is
underestimated costs more, in false alarms, than one that is overestimated."""
CHOICE_PRIOR_IMAGES = 2.0
"""The same while the kind is selected: strong shrinkage would hide the differences that the likelihood measures."""
MIN_VARIANCE = 1e-5
"""Added to every variance: (0.8 of 255 gray levels)². No residual is more precise than the pixel's own rounding."""
POOLING_SIGMA = 1.0
"""Moments are pooled over neighboring positions with a Gaussian of this many pixels."""
EDGE_SIGMA = 1.5
EDGE_BINS = 16
BRIGHTNESS_BINS = 8


@dataclass(frozen=True)
class CalibrationSummary:
    """The selected kind, and each kind's mean log-likelihood of a held-out pixel of good images, in nats.

    kind: "own" for a method whose raw map is in units of good images already; there is no calibration then.
    """

    kind: Kind | Literal["own"]
    log_likelihood: Mapping[str, float]


class Content(nn.Module):
    """Assigns each pixel of a reconstruction to a cell, by edge strength and brightness around it."""

    edge_bounds: Tensor
    brightness_bounds: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("edge_bounds", None)
        self.register_buffer("brightness_bounds", None)
        self.smoothing = Smoothing(height, width, EDGE_SIGMA)

    @classmethod
    def fit(cls, reconstruction: Float[Tensor, "images 3 height width"]) -> "Content":
        """Take quantiles of the given reconstructions as bounds of the cells."""
        content = cls(*reconstruction.shape[-2:])
        edges, brightness = content.features(reconstruction)
        content.edge_bounds = _quantile_bounds(edges, EDGE_BINS)
        content.brightness_bounds = _quantile_bounds(brightness, BRIGHTNESS_BINS)
        return content

    def features(
        self, reconstruction: Float[Tensor, "images 3 height width"]
    ) -> tuple[Float[Tensor, "images height width"], Float[Tensor, "images height width"]]:
        """Return the edge strength (root mean squared gradient) and the brightness of each pixel."""
        grey = reconstruction.mean(1)
        padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
        down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
        return self.smoothing(across**2 + down**2).sqrt(), grey

    def forward(self, reconstruction: Float[Tensor, "images 3 height width"]) -> Int[Tensor, "images height width"]:
        """Return each pixel's cell, in [0, 128)."""
        edges, brightness = self.features(reconstruction)
        # Sums of comparisons instead of torch.bucketize: they can be exported, and the bounds are few.
        edge = (edges[..., None] > self.edge_bounds).sum(-1)
        return edge * BRIGHTNESS_BINS + (brightness[..., None] > self.brightness_bounds).sum(-1)


class Calibration(nn.Module):
    """Measures residuals in units of their second moments on good images.

    whitening: [cells, channels, channels], W with WᵀW the inverse moment; the cells are all positions in reading
        order ("position"), all contents ("content"), or one ("none"). None until fitted or loaded.
    log_distance: normalizes and averages the distances of the residual's parts and those of `Residuals.distances`; None
        if there is only one.
    """

    whitening: Tensor

    def __init__(
        self,
        kind: Kind,
        matrices: Tensor | None,
        content: Content | None,
        log_distance: NormalizedLogDistance | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.content = content
        self.log_distance = log_distance
        self.register_buffer("whitening", matrices)

    @classmethod
    def unfitted(cls, kind: Kind, size: tuple[int, int], distances: int) -> "Calibration":
        """Return a calibration to load tensors into.

        size: height and width of the residuals. distances: how many are joined, those of the residual's parts included.
        """
        content = Content(*size) if kind == "content" else None
        return cls(kind, None, content, NormalizedLogDistance(distances) if distances > 1 else None)

    @classmethod
    def fit(cls, kind: Kind, residuals: Residuals, prior_images: float = PRIOR_IMAGES) -> "Calibration":
        """Estimate the moments from the residuals of good images, and the scales of several distances."""
        fitted = cls._with_moments(kind, residuals, prior_images)
        if residuals.parts > 1 or residuals.distances is not None:
            # Every second pixel in each direction: neighbors are nearly equal.
            distances = [distance[..., ::2, ::2] for distance in fitted.distances(residuals)]
            fitted.log_distance = NormalizedLogDistance(len(distances))
            # Out-of-fold, the weights differ a little between the folds.
            fitted.log_distance.fit(distances, None if residuals.weights is None else residuals.weights.mean(0))
        return fitted

    @classmethod
    def _with_moments(cls, kind: Kind, residuals: Residuals, prior_images: float) -> "Calibration":
        content = Content.fit(_reconstruction(residuals)) if kind == "content" else None
        matrices = whitening(_moments(kind, content, residuals, prior_images), MIN_VARIANCE)
        # Contiguous, as it is read from a file: the memory layout can change the last bits of a distance.
        return cls(kind, matrices.contiguous(), content)

    def whiten(self, residuals: Residuals) -> Float[Tensor, "batch channels height width"]:
        """Return residuals whose second moments on good images are the identity matrix, for each part by itself."""
        residual = residuals.values
        if self.content is not None:
            cells = self.content(_reconstruction(residuals))
            whitened: Tensor = torch.einsum("nhwij,njhw->nihw", self.whitening[cells], residual)
            return whitened
        height, width = residual.shape[-2:]
        shape = (height, width) if self.kind == "position" else (1, 1)
        matrices = self.whitening.reshape(*shape, *self.whitening.shape[1:]).permute(2, 3, 0, 1)
        return (matrices * residual[:, None]).sum(2)

    def forward(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the squared Mahalanobis distance of each pixel's residual, per channel: about 1 on good images.

        Where there are several distances, return the mean normalized log-distance as a map: about 0 on good images,
        and 1 where the mean reaches the 99 % quantile of good pixels.
        """
        distances = self.distances(residuals)
        if self.log_distance is None:
            return distances[0]
        return as_map(self.log_distance(distances))

    def distances(self, residuals: Residuals) -> list[Float[Tensor, "batch height width"]]:
        """Return the squared Mahalanobis distance of each part, per channel, and the further distances."""
        own = [part.square().mean(1) for part in self.whiten(residuals).chunk(residuals.parts, 1)]
        return own if residuals.distances is None else [*own, *residuals.distances.unbind(1)]

    def log_likelihood(self, residuals: Residuals) -> float:
        """Return the mean log-density of a pixel's residual under a Gaussian with these moments, in nats."""
        whitened = self.whiten(residuals)
        volume = torch.linalg.slogdet(self.whitening.double()).logabsdet
        if self.content is not None:
            volume = volume[self.content(_reconstruction(residuals))]
        constant = whitened.shape[1] / 2 * torch.log(torch.tensor(2 * torch.pi))
        return float(volume.mean() - whitened.double().square().sum(1).mean() / 2 - constant)


def choose(training: Residuals, held_out: Residuals) -> CalibrationSummary:
    """Select the kind whose moments, estimated on `training`, give the held-out residuals the highest likelihood.

    A network reconstructs its training images better than new ones; the training residuals are therefore first
    scaled to the overall size of the held-out ones, so that no kind has an advantage. All parts have the same kind and
    the same factor.
    """
    training = scaled_to(training, held_out)._replace(distances=None)
    kinds = KINDS if training.reconstruction is not None else tuple(kind for kind in KINDS if kind != "content")
    scores: dict[str, float] = {
        kind: Calibration._with_moments(kind, training, CHOICE_PRIOR_IMAGES).log_likelihood(held_out) for kind in kinds
    }
    return CalibrationSummary(max(kinds, key=lambda kind: scores[kind]), scores)


def scaled_to(training: Residuals, held_out: Residuals) -> Residuals:
    """Return the residuals of training images, their values scaled to the mean square of the held-out ones."""
    scale = float((held_out.values.square().mean() / training.values.square().mean().clamp_min(1e-12)).sqrt())
    return training._replace(values=training.values * scale)


def _reconstruction(residuals: Residuals) -> Tensor:
    return cast(Tensor, residuals.reconstruction)


def _quantile_bounds(values: Tensor, bins: int) -> Tensor:
    # torch.quantile refuses more than 2**24 values; every k-th value gives the same quantiles nearly.
    flat = values.flatten()
    flat = flat[:: max(1, len(flat) // 1_000_000)]
    return torch.quantile(flat, torch.linspace(0, 1, bins + 1)[1:-1])


def _moments(
    kind: Kind, content: Content | None, residuals: Residuals, prior_images: float
) -> Float[Tensor, "cells channels channels"]:
    """Return the second moments of each cell; those between channels of different parts are 0."""
    moments = _moments_of_all_channels(kind, content, residuals, prior_images)
    channels = moments.shape[-1] // residuals.parts
    part = torch.arange(moments.shape[-1], device=moments.device) // channels
    return torch.where(part[:, None] == part, moments, 0)


def _moments_of_all_channels(
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
    cells = content(_reconstruction(residuals)).flatten()
    count = EDGE_BINS * BRIGHTNESS_BINS
    products = torch.einsum("nihw,njhw->nhwij", residual, residual).flatten(0, 2)
    sums = torch.zeros(count, *products.shape[1:]).index_add_(0, cells, products)
    prior = prior_images * height * width / count
    return (sums + prior * overall) / (torch.bincount(cells, minlength=count)[:, None, None] + prior)
