"""Codebook."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from metalad.detectors.density.clustering import k_means

BANK_CHUNK = 2048
"""Vectors that a batch is compared with at once; bounds memory and still fills a matrix product."""

ROUNDS = 10
"""Rounds of k-means: the last words move by little, and many are more of a sample than of a partition."""

POINTS = 30_000
"""Places that a codebook is found from."""


class Codebook(nn.Module):
    """The distance of a feature from the nearest of a few typical ones: words, found by k-means.

    As good as the distance from the nearest of all normal features, and in constant time.
    words: [words, channels].
    """

    entries: Tensor

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.count = entries
        self.register_buffer("entries", torch.zeros(0, 0))

    def fit(self, points: Float[Tensor, "points channels"], seed: int) -> None:
        """Find the words; of fewer points than words, each is one."""
        few = len(points) <= self.count
        self.entries = points if few else k_means(points, self.count, seed, starts=1, rounds=ROUNDS, plus_plus=False)

    def forward(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch down across"]:
        """Return the Euclidean distance from the nearest word."""
        batch, channels, down, across = maps.shape
        flat = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        # The differences, not the expanded squares, give the distance: those lose all digits near 0.
        lengths: Tensor = torch.linalg.vector_norm(flat - self.entries[nearest(flat, self.entries)], dim=1)
        return lengths.reshape(batch, down, across)


def sampled_positions(
    maps: Float[Tensor, "images channels down across"], seed: int
) -> Float[Tensor, "points channels"]:
    """Return the features of at most `POINTS` places of all images, drawn by chance."""
    images, _, down, across = maps.shape
    drawn = torch.randperm(images * down * across, generator=torch.Generator().manual_seed(seed))[:POINTS]
    drawn = drawn.to(maps.device)
    return maps.flatten(2)[drawn.div(down * across, rounding_mode="floor"), :, drawn % (down * across)]


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
