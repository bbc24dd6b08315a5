"""Coreset: a few feature vectors such that every other one is close to one of them."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from metalad.runtime.progress import counted

ROUNDING = 1e-5
"""Tolerance of the candidate test in `coreset`, relative to squared lengths: rounding error of expanded squares."""


def coreset(points: Float[Tensor, "points channels"], count: int, seed: int) -> Int[Tensor, " count"]:
    """Select `count` points greedily: the first at random, each next one farthest from all selected ones.

    Exact k-center greedy (Gonzalez 1985). In each step, one matrix-vector product (expanded squares) finds the few
    points that may be closer to the newest center than to any other; exact distances are computed for these only.
    """
    generator = torch.Generator().manual_seed(seed)
    newest = int(torch.randint(len(points), (1,), generator=generator))
    chosen, squares = [newest], points.square().sum(1)
    distance = torch.linalg.vector_norm(points - points[newest], dim=1)
    squared_distance = distance.square()
    for _ in counted(range(1, count), "bank", "feature"):
        distance[newest] = squared_distance[newest] = -1  # never select it again, even with duplicate points
        newest = int(distance.argmax())
        centre = points[newest]
        approximate = torch.addmv(squares, points, centre, alpha=-2).add_(squares[newest])
        possibly_closer = (approximate < squared_distance + ROUNDING * (squares + squares[newest])).nonzero()[:, 0]
        closer = torch.linalg.vector_norm(points.index_select(0, possibly_closer) - centre, dim=1)
        better = closer < distance[possibly_closer]
        updated, closer = possibly_closer[better], closer[better]
        distance[updated], squared_distance[updated] = closer, closer.square()
        chosen.append(newest)
    return torch.tensor(chosen, device=points.device)


def random_projection(
    points: Float[Tensor, "points channels"], dimensions: int, seed: int
) -> Float[Tensor, "points dimensions"]:
    """Project at random, which nearly keeps distances (Johnson & Lindenstrauss 1984).

    Points with fewer channels are returned as they are.
    """
    if points.shape[1] <= dimensions:
        return points
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(points.shape[1], dimensions, generator=generator) / math.sqrt(dimensions)
    return points @ matrix.to(points.device)
