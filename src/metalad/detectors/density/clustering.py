"""K-means and mixtures of normal laws, over points that fit memory."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalad.runtime.progress import counted

STARTS = 10
MAX_ROUNDS = 100
CHUNK = 16_384
"""Points that a mixture looks at at once: each takes components × channels numbers."""
POINTS_AT_ONCE = 2048
"""Points compared with all centres at once: their distances stay in the CPU's cache."""


class Mixture(NamedTuple):
    """A mixture of normal laws.

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
) -> Float[Tensor, "words channels"]:
    """Return the centres of the best of some starts (Lloyd 1982; started by k-means++, Arthur & Vassilvitskii 2007).

    rounds: of each start at most. spread: start from points far apart, which takes a pass over all for each; for a
        thousand words, a plain sample is as good.
    """
    generator = torch.Generator().manual_seed(seed)
    best, least = points[:clusters], float("inf")
    for _ in range(starts):
        centres = (
            _plus_plus_start(points, clusters, generator) if plus_plus else _random_start(points, clusters, generator)
        )
        for _ in counted(range(rounds), "k-means", "round"):
            owner = _nearest_centres(points, centres)
            sums = torch.zeros_like(centres).index_add_(0, owner, points)
            count = torch.bincount(owner, minlength=clusters)[:, None]
            moved = torch.where(count > 0, sums / count.clamp_min(1), centres)
            if torch.equal(moved, centres):
                break
            centres = moved
        if starts == 1:
            return centres
        cost = float((points - centres[_nearest_centres(points, centres)]).double().square().sum())
        if cost < least:
            best, least = centres, cost
    return best


def _nearest_centres(points: Tensor, centres: Tensor) -> Tensor:
    """Return the index of each point's nearest centre, by |y|² − 2 x·y: |x|² is the same for all y."""
    lengths = centres.square().sum(1)
    parts = torch.split(points, POINTS_AT_ONCE)
    return torch.cat([torch.addmm(lengths, part, centres.T, alpha=-2).argmin(1) for part in parts])


def _random_start(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    return points[torch.randperm(len(points), generator=generator)[:clusters].to(points.device)]


def _plus_plus_start(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Draw each centre with a probability that grows with the square of its distance from those before."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    far = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < clusters:
        reached = far.double().cumsum(0).cpu()
        aim = torch.rand(1, generator=generator, dtype=torch.double) * reached[-1]
        chosen.append(min(int(torch.searchsorted(reached, aim)), len(points) - 1))
        far = torch.minimum(far, (points - points[chosen[-1]]).square().sum(1))
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
    """Fit by expectation and maximisation (Dempster et al. 1977), started from k-means.

    ridge: added to every variance. rounds, tolerance: stop after so many, or when the mean log-likelihood of a point
    has grown by less than so many nats.
    """
    centres = k_means(points, components, seed, starts=1)
    owner = _nearest_centres(points, centres)
    responsibility = torch.nn.functional.one_hot(owner, components).to(points.dtype)
    mixture, before = _maximised(points, responsibility, ridge), -math.inf
    for _ in counted(range(rounds), "mixture", "round"):
        each = joint_log_density(points, mixture)
        total = each.logsumexp(1, keepdim=True)
        now = float(total.double().mean())
        if now - before < tolerance:
            break
        mixture, before = _maximised(points, (each - total).exp(), ridge), now
    return mixture


def joint_log_density(points: Float[Tensor, "points channels"], mixture: Mixture) -> Float[Tensor, "points components"]:
    """Return ln of each component's weight times its density at each point, in nats."""
    count, channels = mixture.mean.shape
    matrix = mixture.whitening.flatten(0, 1)
    shift = (mixture.whitening @ mixture.mean[..., None]).flatten()
    volume = mixture.whitening.diagonal(dim1=1, dim2=2).abs().log().sum(1)
    constant = mixture.log_weight + volume - channels / 2 * math.log(2 * math.pi)
    parts = [
        torch.addmm(-shift, part, matrix.T).reshape(-1, count, channels).square().sum(2)
        for part in torch.split(points, CHUNK)
    ]
    return constant - torch.cat(parts) / 2


def log_likelihood(points: Float[Tensor, "points channels"], mixture: Mixture) -> Float[Tensor, " points"]:
    """Return ln of the mixture's density at each point, in nats."""
    return joint_log_density(points, mixture).logsumexp(1)


def _maximised(points: Tensor, responsibility: Tensor, ridge: float) -> Mixture:
    """Return the likeliest mixture for given shares of each point in each component; moments in double precision."""
    points, responsibility = points.double(), responsibility.double()
    count = responsibility.sum(0).clamp_min(10 * torch.finfo(responsibility.dtype).eps)
    mean = responsibility.T @ points / count[:, None]
    identity = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    whitening = []
    for number, centre in enumerate(mean):
        apart = points - centre
        covariance = (responsibility[:, number, None] * apart).T @ apart / count[number] + ridge * identity
        factor = torch.linalg.cholesky(covariance)
        whitening.append(torch.linalg.solve_triangular(factor, identity, upper=False))
    return Mixture((count / count.sum()).log().float(), mean.float(), torch.stack(whitening).float())
