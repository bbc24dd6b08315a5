"""Codebook of feature vectors and nearest-neighbor distances."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.density.clustering import k_means
from metalad.detectors.density.nearest import nearest

ROUNDS = 10
"""Iterations of k-means. Further iterations change the entries of a large codebook only slightly."""

MAX_POINTS = 30_000
"""Maximum number of feature vectors that a codebook is fitted on."""


class Codebook(nn.Module):
    """The distance of a feature vector from the nearest codebook entry; the entries are fitted by k-means.

    The distance is as accurate as that from the nearest of all good feature vectors, but the time does not depend on
    the number of images. entries: [entries, channels].
    """

    entries: Tensor

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.count = entries
        self.register_buffer("entries", None)

    def fit(self, points: Float[Tensor, "points channels"], seed: int) -> None:
        """Fit the entries. If there are not more points than entries, the points are the entries."""
        if len(points) <= self.count:
            self.entries = points
        else:
            self.entries = k_means(points, self.count, seed, starts=1, rounds=ROUNDS, plus_plus=False)

    def forward(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch down across"]:
        """Return the Euclidean distance from the nearest codebook entry at each position."""
        batch, channels, down, across = maps.shape
        flat = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        # The distance is computed from differences: expanded squares have no correct digits near 0.
        distances: Tensor = torch.linalg.vector_norm(flat - self.entries[nearest(flat, self.entries)], dim=1)
        return distances.reshape(batch, down, across)


def sampled_positions(
    maps: Float[Tensor, "images channels down across"], seed: int
) -> Float[Tensor, "points channels"]:
    """Return the feature vectors at random positions of all images, at most `MAX_POINTS`."""
    images, _, down, across = maps.shape
    index = torch.randperm(images * down * across, generator=torch.Generator().manual_seed(seed))[:MAX_POINTS]
    index = index.to(maps.device)
    return maps.flatten(2)[index.div(down * across, rounding_mode="floor"), :, index % (down * across)]
