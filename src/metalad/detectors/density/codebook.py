"""Codebook of feature vectors and nearest-neighbor distances."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from metalad.detectors.density.clustering import k_means
from metalad.detectors.density.coreset import coreset, random_projection
from metalad.detectors.density.nearest import nearest
from metalad.nn.parts import in_parts

ROUNDS = 10
"""Iterations of k-means. Further iterations change the entries of a large codebook only slightly."""

PROJECTION = 64
"""Dimensions of the random projection in which a coreset is selected."""

MAX_POINTS = 30_000
"""Maximum number of feature vectors that a codebook is fitted on, unless more are given."""

POSITIONS_AT_ONCE = 16_384
"""Positions whose nearest entries are held at once: those of 16 images of 256×256."""

Selection = Literal["k-means", "coreset"]


class Codebook(nn.Module):
    """The distance of a feature vector from the nearest codebook entry; the time does not depend on the images.

    selection: `coreset` selects feature vectors such that every other one is near one of them (k-center greedy, as in
    PatchCore), so that rare ones, such as those of rare orientations of an object, are entries. `k-means` averages them
    with frequent ones, and needs fewer entries. entries: [entries, channels].
    """

    entries: Tensor

    def __init__(self, entries: int, selection: Selection = "k-means", averaged: float = 0) -> None:
        """Construct the codebook, unfitted.

        averaged: the fraction of the entries of a coreset that are selected first, by k-means. K-center greedy alone
            gives dense regions no more entries than sparse ones, perhaps none: the most frequent vectors may be farther
            from their nearest entry than rare ones.
        """
        super().__init__()
        self.count, self.selection, self.averaged = entries, selection, averaged
        self.register_buffer("entries", None)

    @property
    def averages(self) -> int:
        """The number of entries of a coreset that are averages, not points that it was selected from."""
        return round(self.averaged * self.count)

    def fit(
        self, points: Float[Tensor, "points channels"], seed: int, weights: Float[Tensor, " channels"] | None = None
    ) -> None:
        """Fit the entries to weighted points. If there are not more points than entries, the points are the entries.

        weights: factor of each channel, 1 by default.
        """
        factors = torch.ones_like(points[0]) if weights is None else weights
        if len(points) <= self.count:
            self.entries = points * factors
        elif self.selection == "k-means":
            self.entries = _averaged(points * factors, self.count, seed)
        else:
            self.entries = self._coreset(points, factors, seed)

    def _coreset(self, points: Tensor, weights: Tensor, seed: int) -> Tensor:
        averaged = self.averages
        projected = random_projection(points, PROJECTION, seed, weights)
        if not averaged:
            return points[coreset(projected, self.count, seed)] * weights
        some = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[: max(MAX_POINTS, averaged)]
        centers = _averaged(points[some.to(points.device)] * weights, averaged, seed)
        given = random_projection(centers, PROJECTION, seed)  # of weighted points, by the same matrix
        return torch.cat([centers, points[coreset(projected, self.count - averaged, seed, given)] * weights])

    def forward(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch down across"]:
        """Return the Euclidean distance from the nearest codebook entry at each position."""
        _, channels, down, across = maps.shape
        flat = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        # A copy of all entries of a large map would need as much memory as the map.
        return torch.cat([self._distances(part) for part in in_parts(flat, POSITIONS_AT_ONCE)]).reshape(
            -1, down, across
        )

    def _distances(self, points: Float[Tensor, "points channels"]) -> Float[Tensor, " points"]:
        # The distance is computed from differences: expanded squares have no correct digits near 0.
        distances: Tensor = torch.linalg.vector_norm(points - self.entries[nearest(points, self.entries)], dim=1)
        return distances


def _averaged(points: Tensor, count: int, seed: int) -> Tensor:
    return k_means(points, count, seed, starts=1, rounds=ROUNDS, plus_plus=False)


def sampled_positions(
    maps: Float[Tensor, "images channels down across"],
    seed: int,
    chosen: Int[Tensor, " chosen"] | None = None,
    most: int = MAX_POINTS,
) -> Float[Tensor, "points channels"]:
    """Return the feature vectors at random positions of the chosen images, of all images by default; at most `most`."""
    images, _, down, across = maps.shape
    chosen = torch.arange(images) if chosen is None else chosen
    index = torch.randperm(len(chosen) * down * across, generator=torch.Generator().manual_seed(seed))[:most]
    image = chosen[index.div(down * across, rounding_mode="floor")].to(maps.device)
    return maps.flatten(2)[image, :, (index % (down * across)).to(maps.device)]
