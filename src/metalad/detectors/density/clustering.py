"""K-means and Gaussian mixtures, for points that fit into memory."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalad.detectors.density.nearest import nearest
from metalad.nn.log_sum_exp import log_sum_exp
from metalad.nn.parts import in_parts
from metalad.nn.whitening import whitening
from metalad.runtime.progress import counted

STARTS = 10
MAX_ROUNDS = 100
CHUNK = 16_384
"""Points per evaluation of a mixture: each needs components × channels values."""


class Mixture(NamedTuple):
    """A Gaussian mixture.

    log_weight: [components]. mean: [components, channels]. whitening: [components, channels, channels], W with WᵀW the
        inverse covariance.
    """

    log_weight: Float[Tensor, " components"]
    mean: Float[Tensor, "components channels"]
    whitening: Float[Tensor, "components channels channels"]


def k_means(
    points: Float[Tensor, "points channels"],
    clusters: int,
    seed: int,
    *,
    starts: int = STARTS,
    rounds: int = MAX_ROUNDS,
    plus_plus: bool = True,
) -> Float[Tensor, "clusters channels"]:
    """Return the cluster centers of the best of several runs (Lloyd 1982).

    Args:
        points: the data.
        clusters: number of clusters.
        seed: of the random initializations.
        starts: number of runs; the one with the lowest sum of squared distances is returned.
        rounds: maximum number of iterations per run.
        plus_plus: initialize with k-means++ (Arthur & Vassilvitskii 2007), which needs a pass over all points for each
            center, instead of a random sample. For a thousand clusters, a random sample is as good.
    """
    generator = torch.Generator().manual_seed(seed)
    best, lowest_cost = points[:clusters], float("inf")
    for _ in range(starts):
        centers = (
            _plus_plus_start(points, clusters, generator) if plus_plus else _random_start(points, clusters, generator)
        )
        for _ in counted(range(rounds), "k-means", "round"):
            assignment = nearest(points, centers)
            sums = torch.zeros_like(centers).index_add_(0, assignment, points)
            count = torch.bincount(assignment, minlength=clusters)[:, None]
            updated = torch.where(count > 0, sums / count.clamp_min(1), centers)
            if torch.equal(updated, centers):
                break
            centers = updated
        if starts == 1:
            return centers
        cost = float((points - centers[nearest(points, centers)]).double().square().sum())
        if cost < lowest_cost:
            best, lowest_cost = centers, cost
    return best


def _random_start(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    return points[torch.randperm(len(points), generator=generator)[:clusters].to(points.device)]


def _plus_plus_start(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Sample each center with a probability proportional to its squared distance from the nearest previous center."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    squared_distance = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < clusters:
        cumulative = squared_distance.double().cumsum(0).cpu()
        target = torch.rand(1, generator=generator, dtype=torch.double) * cumulative[-1]
        chosen.append(min(int(torch.searchsorted(cumulative, target)), len(points) - 1))
        squared_distance = torch.minimum(squared_distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]


def fit_mixture(
    points: Float[Tensor, "points channels"],
    components: int,
    seed: int,
    *,
    ridge: float = 1e-4,
    rounds: int = 100,
    tolerance: float = 1e-3,
) -> Mixture:
    """Fit a Gaussian mixture by expectation maximization (Dempster et al. 1977), initialized by k-means.

    Args:
        points: the data.
        components: number of components.
        seed: of k-means.
        ridge: added to every variance.
        rounds: maximum number of iterations.
        tolerance: stop when the mean log-likelihood per point increases by less than this, in nats.
    """
    centers = k_means(points, components, seed, starts=1)
    assignment = nearest(points, centers)
    responsibility = torch.nn.functional.one_hot(assignment, components).to(points.dtype)
    mixture, previous = _maximize(points, responsibility, ridge), -math.inf
    for _ in counted(range(rounds), "mixture", "round"):
        joint = joint_log_density(points, mixture)
        total = joint.logsumexp(1, keepdim=True)
        current = float(total.double().mean())
        if current - previous < tolerance:
            break
        mixture, previous = _maximize(points, (joint - total).exp(), ridge), current
    return mixture


def joint_log_density(points: Float[Tensor, "points channels"], mixture: Mixture) -> Float[Tensor, "points components"]:
    """Return the log of each component's weight times its density at each point, in nats."""
    count, channels = mixture.mean.shape
    matrix = mixture.whitening.flatten(0, 1)
    shift = (mixture.whitening @ mixture.mean[..., None]).flatten()
    log_determinant = mixture.whitening.diagonal(dim1=1, dim2=2).abs().log().sum(1)
    constant = mixture.log_weight + log_determinant - channels / 2 * math.log(2 * math.pi)
    parts = [
        _summed(torch.addmm(-shift, part, matrix.T).reshape(-1, count, channels).square())
        for part in in_parts(points, CHUNK)
    ]
    return constant - torch.cat(parts) / 2


def _summed(squares: Float[Tensor, "points components channels"]) -> Float[Tensor, "points components"]:
    if torch.compiler.is_compiling():  # in exported graphs, OpenVINO 2026.4 reads beyond the sums
        return (squares @ torch.ones_like(squares[0, 0, :, None])).squeeze(2)
    return squares.sum(2)


def log_likelihood(points: Float[Tensor, "points channels"], mixture: Mixture) -> Float[Tensor, " points"]:
    """Return the log-density of the mixture at each point, in nats."""
    return log_sum_exp(joint_log_density(points, mixture), 1)


def _maximize(points: Tensor, responsibility: Tensor, ridge: float) -> Mixture:
    """Return the maximum-likelihood mixture for given responsibilities; moments are computed in double precision."""
    points, responsibility = points.double(), responsibility.double()
    count = responsibility.sum(0).clamp_min(10 * torch.finfo(responsibility.dtype).eps)
    mean = responsibility.T @ points / count[:, None]
    covariances = []
    for index, center in enumerate(mean):
        deviations = points - center
        covariances.append((responsibility[:, index, None] * deviations).T @ deviations / count[index])
    return Mixture((count / count.sum()).log().float(), mean.float(), whitening(torch.stack(covariances), ridge))
