"""Coreset: a few feature vectors such that every other one is close to one of them."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from metalad.detectors.density.nearest import nearest
from metalad.runtime.progress import counted

ROUNDING = 1e-5
"""Tolerance of the candidate test in `_update`, relative to squared lengths: rounding error of expanded squares."""
CANDIDATES = 192
"""Points among which several centers are selected before the distances of all points are updated."""
POINTS_AT_ONCE = 8192
"""Points whose distances are updated at once: their products with the new centers stay in the CPU's cache."""


def coreset(
    points: Float[Tensor, "points channels"],
    count: int,
    seed: int,
    given: Float[Tensor, "centers channels"] | None = None,
) -> Int[Tensor, " _count"]:
    """Select `count` points greedily: the first at random, each next one farthest from all selected ones.

    If fewer points are distinct, only these: the others are at distance 0 from a selected one.

    Exact k-center greedy (Gonzalez 1985), several centers at a time, see `_farthest`: a matrix product with all of them
    takes a fraction of the time of as many matrix-vector products.

    given: centers that every point must be far from, too, the first one included.
    """
    if given is None:
        generator = torch.Generator().manual_seed(seed)
        chosen = [int(torch.randint(len(points), (1,), generator=generator))]
        distance = torch.linalg.vector_norm(points - points[chosen[0]], dim=1)
        distance[chosen] = -1  # never select it again, even with duplicate points
    else:
        chosen = []
        distance = torch.linalg.vector_norm(points - given[nearest(points, given)], dim=1)
    centers = _centers(points, count - len(chosen), distance)
    selected = list(counted(itertools.chain(chosen, centers), "bank", "feature", count))
    return torch.tensor(selected, dtype=torch.long, device=points.device)


def _centers(points: Tensor, left: int, distance: Tensor) -> Iterator[int]:
    """Yield as many points as are `left` to select, given the distance of each point from those selected already.

    Fewer, once every point is at distance 0 from one of them.
    """
    squares = points.square().sum(1)
    while left and distance.max() > 0:
        chosen = _farthest(points, distance, left)
        yield from chosen
        left -= len(chosen)
        if left:
            _update(distance, points, squares, torch.tensor(chosen, device=points.device))


def _farthest(points: Tensor, distance: Tensor, most: int) -> list[int]:
    """Return the next centers, at most `most`, before the distances of all points must be updated.

    The candidates are the points farthest from the selected ones. A new center is selected among them by their
    distances from each other. While it is farther than every other point was, it is the farthest of all: distances
    never increase.
    """
    chosen = [int(distance.argmax())]
    if len(distance) <= CANDIDATES + 1:
        return chosen
    values, candidates = distance.topk(CANDIDATES + 1)
    outside = float(values[-1])
    candidates = candidates[:-1].sort().values
    features = points[candidates]
    between = torch.linalg.vector_norm(features[:, None] - features, dim=2).numpy(force=True)
    current, index = distance[candidates].numpy(force=True).copy(), candidates.tolist()
    if chosen[0] not in index:  # of equal distances
        return chosen
    newest = index.index(chosen[0])
    while True:
        np.minimum(current, between[newest], out=current)
        current[newest] = -1
        newest = int(current.argmax())
        if current[newest] <= outside or len(chosen) == most:
            return chosen
        chosen.append(index[newest])


def _update(distance: Tensor, points: Tensor, squares: Tensor, centers: Tensor) -> None:
    """Lower the distances to those from new centers.

    Expanded squares find the few pairs of a point and a center that may be closer; exact distances are computed for
    these only.
    """
    features, center_squares = points[centers], squares[centers]
    for start in range(0, len(points), POINTS_AT_ONCE):
        part = slice(start, start + POINTS_AT_ONCE)
        approximate = torch.addmm(squares[part, None], points[part], features.T, alpha=-2)
        approximate.add_((1 - ROUNDING) * center_squares)
        limit = distance[part].clamp_min(0).square() + ROUNDING * squares[part]
        point, center = (approximate < limit[:, None]).nonzero().unbind(1)
        closer = torch.linalg.vector_norm(points[part].index_select(0, point) - features.index_select(0, center), dim=1)
        distance[part].scatter_reduce_(0, point, closer, "amin")
    distance[centers] = -1


def random_projection(
    points: Float[Tensor, "points channels"],
    dimensions: int,
    seed: int,
    weights: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, "points dimensions"]:
    """Project weighted points at random, which nearly keeps distances (Johnson & Lindenstrauss 1984).

    Points with fewer channels are only weighted. weights: factor of each channel, 1 by default.
    """
    if points.shape[1] <= dimensions:
        return points if weights is None else points * weights
    generator = torch.Generator().manual_seed(seed)
    matrix = (torch.randn(points.shape[1], dimensions, generator=generator) / math.sqrt(dimensions)).to(points.device)
    # The matrix is weighted, not the points, which are many.
    return points @ (matrix if weights is None else weights[:, None] * matrix)
