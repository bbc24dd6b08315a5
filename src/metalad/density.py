"""How far a feature lies from those of good images, in constant time, and how several distances become one.

A distance alone says little: each has its own unit and its own noise. In tail units (see `Surprise`) good images
decide both, so that distances of many kinds can be averaged and an unsteady one earns little weight.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from metalad.clustering import k_means
from metalad.layers import Smoothing

BANK_CHUNK = 2048
"""Vectors that a batch is compared with at once; bounds memory and still fills a matrix product."""
ROUNDS = 10
"""Rounds of k-means: the last words move by little, and many are more of a sample than of a partition."""
TAIL = 0.99
"""The quantile of good images' places that is 1 in tail units."""
POOLING_SIGMA = 1.0
"""Neighbouring places share moments: a Gaussian of this many places."""
PRIOR_IMAGES = 10.0
"""A place's moments are drawn to the mean place's as if this many further images had shown those."""
RIDGE = 0.05
"""Added to every variance, as a part of the mean variance."""
POINTS = 30_000
"""Places that a codebook is found from."""
COMPONENTS = 48
"""Principal components, at most."""
IMAGES_PER_COMPONENT = 4
"""More components would learn the images by heart."""
SHARPNESS = 4.0
"""How soon a map of surprise goes to 0 below the usual: softplus's beta."""


class Codebook(nn.Module):
    """The distance of a feature from the nearest of a few typical ones: words, found by k-means.

    As good as the distance from the nearest of all normal features, and in constant time.
    words: [words, channels].
    """

    words: Tensor

    def __init__(self, words: int) -> None:
        super().__init__()
        self.count = words
        self.register_buffer("words", torch.zeros(0, 0))

    def learn(self, points: Float[Tensor, "points channels"], seed: int) -> None:
        """Find the words; of fewer points than words, each is one."""
        few = len(points) <= self.count
        self.words = points if few else k_means(points, self.count, seed, starts=1, rounds=ROUNDS, spread=False)

    def forward(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch down across"]:
        """Return the Euclidean distance from the nearest word."""
        batch, channels, down, across = maps.shape
        flat = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        # The differences, not the expanded squares, give the distance: those lose all digits near 0.
        lengths: Tensor = torch.linalg.vector_norm(flat - self.words[nearest(flat, self.words)], dim=1)
        return lengths.reshape(batch, down, across)


class PlaceNormal(nn.Module):
    """The Mahalanobis distance of a feature from the normal law of its place (after Defard 2021).

    Unlike PaDiM's, moments are shared with neighbouring places and drawn to the mean place's: few images suffice.
    mean: [channels, down, across]. whitening: [places, channels, channels], W with WᵀW the inverse covariance.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(0, 0, 0))
        self.register_buffer("whitening", torch.zeros(0, 0, 0))

    def learn(self, maps: Float[Tensor, "images channels down across"]) -> None:
        """Learn mean and covariance of each place."""
        images, channels, down, across = maps.shape
        pool = Smoothing(down, across, POOLING_SIGMA).to(maps.device)
        self.mean = pool(maps.mean(0))
        centred = (maps - self.mean).permute(2, 3, 1, 0).flatten(0, 1)
        products = torch.bmm(centred, centred.transpose(1, 2)) / images
        products = pool(products.permute(1, 2, 0).reshape(channels, channels, down, across)).flatten(2).permute(2, 0, 1)
        mean_place = products.mean(0)
        moments = (images * products + PRIOR_IMAGES * mean_place) / (images + PRIOR_IMAGES)
        floor = RIDGE * mean_place.diagonal().mean() + torch.finfo(torch.float32).tiny
        self.whitening = whitening(moments, floor)

    def forward(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch down across"]:
        """Return the distance at each place."""
        centred = (maps - self.mean).permute(2, 3, 1, 0).flatten(0, 1)
        lengths: Tensor = torch.linalg.vector_norm(torch.bmm(self.whitening, centred), dim=1)
        return lengths.T.reshape(len(maps), *maps.shape[-2:])


class PrincipalComponents(nn.Module):
    """What an image would be if it were made of what good images differ by: their mean and their main components.

    mean: [channels, height, width]. directions: [components, channels × height × width], orthonormal.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(0, 0, 0))
        self.register_buffer("directions", torch.zeros(0, 0))

    def learn(self, images: Float[Tensor, "images channels height width"]) -> None:
        """Learn mean and components: one for every `IMAGES_PER_COMPONENT` images, at most `COMPONENTS`."""
        self.mean = images.mean(0)
        centred = (images - self.mean).flatten(1)
        count = min(COMPONENTS, len(images) // IMAGES_PER_COMPONENT)
        # The Gram matrix has as many rows as there are images; the covariance would have as many as pixels.
        values, vectors = torch.linalg.eigh((centred @ centred.T).double())
        kept = values[-count:].clamp_min(torch.finfo(torch.float32).tiny) if count else values[:0]
        self.directions = (vectors[:, len(values) - count :] / kept.sqrt()).float().T @ centred

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the nearest image that mean and components can make."""
        centred = (images - self.mean).flatten(1)
        return self.mean + (centred @ self.directions.T @ self.directions).reshape(images.shape)


class Surprise(nn.Module):
    """Several distances as one, in tail units of good images.

    The logarithm of each is counted from its mean on good images, in units of how far its 99 % quantile lies above
    that: 0 is usual, 1 is what one good place in a hundred reaches. Their mean is what is said. A distance that
    varies much on good images has a long unit, and so a small say.

    usual, reach: [distances].
    """

    usual: Tensor
    reach: Tensor

    def __init__(self, distances: int) -> None:
        super().__init__()
        self.register_buffer("usual", torch.zeros(distances))
        self.register_buffer("reach", torch.ones(distances))

    def learn(self, distances: Sequence[Float[Tensor, "images down across"]]) -> None:
        """Learn the units from distances of good images that the densities did not learn from."""
        for number, values in enumerate(distances):
            logs = _log(values).flatten()
            self.usual[number] = logs.mean()
            # The k-th of the sorted values: torch.quantile refuses more than 2**24.
            tail = logs.sort().values[math.ceil(TAIL * len(logs)) - 1]
            self.reach[number] = (tail - logs.mean()).clamp_min(1e-3)

    def forward(
        self,
        distances: Sequence[Float[Tensor, "batch down across"]],
        say: Float[Tensor, " distances"] | None = None,
    ) -> Float[Tensor, "batch down across"]:
        """Return the mean of the distances in tail units; below 0 where less than usual.

        say: each distance's weight; all alike by default.
        """
        units = [(_log(values) - self.usual[number]) / self.reach[number] for number, values in enumerate(distances)]
        if say is None:
            return torch.stack(units).mean(0)
        return (torch.stack(units) * say[:, None, None, None]).sum(0) / say.sum()


def as_map(surprise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return tail units as an anomaly map, which is never negative: near 0 below the usual, unchanged far above."""
    return F.softplus(surprise, beta=SHARPNESS)


def whitening(
    covariance: Float[Tensor, "places channels channels"], ridge: float | Float[Tensor, ""]
) -> Float[Tensor, "places channels channels"]:
    """Return W with WᵀW the inverse of each covariance, to whose variances `ridge` is added; in single precision.

    Inverts the Cholesky factors in double precision, a few at a time: all at once would take thrice the memory.
    """
    found = torch.empty_like(covariance, dtype=torch.float32)
    identity = torch.eye(covariance.shape[-1], dtype=torch.double, device=covariance.device)
    for start in range(0, len(covariance), 64):
        factor = torch.linalg.cholesky(covariance[start : start + 64].double() + ridge * identity)
        inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        found[start : start + 64] = inverse
    return found


def explained_by_place(maps: Float[Tensor, "images channels down across"]) -> Float[Tensor, ""]:
    """Return the part of the features' variance that places explain: 1 if images do not differ, 0 of textures."""
    within, total = maps.var(0, correction=0).mean(), maps.var((0, 2, 3), correction=0).mean()
    return 1 - within / total.clamp_min(torch.finfo(total.dtype).tiny)


def drawn_places(maps: Float[Tensor, "images channels down across"], seed: int) -> Float[Tensor, "points channels"]:
    """Return the features of at most `POINTS` places of all images, drawn by chance."""
    images, _, down, across = maps.shape
    drawn = torch.randperm(images * down * across, generator=torch.Generator().manual_seed(seed))[:POINTS]
    drawn = drawn.to(maps.device)
    return maps.flatten(2)[drawn.div(down * across, rounding_mode="floor"), :, drawn % (down * across)]


def _log(values: Tensor) -> Tensor:
    return values.clamp_min(1e-6).log()


def nearest(
    queries: Float[Tensor, "queries channels"], bank: Float[Tensor, "bank channels"]
) -> Int[Tensor, " queries"]:
    """Return the index of each query's nearest vector, by |x|² + |y|² − 2 x·y; |x|² is the same for all y."""
    best = queries.new_full((len(queries),), math.inf)
    found = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), BANK_CHUNK):
        part = bank[start : start + BANK_CHUNK]
        squares, index = torch.addmm(part.square().sum(1), queries, part.T, alpha=-2).min(1)
        found = torch.where(squares < best, index + start, found)
        best = torch.minimum(best, squares)
    return found
