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

    def __init__(self, entries: int, selection: Selection = "k-means") -> None:
        super().__init__()
        self.count, self.selection = entries, selection
        self.register_buffer("entries", None)

    def fit(
        self, points: Float[Tensor, "points channels"], seed: int, weights: Float[Tensor, " channels"] | None = None
    ) -> None:
        """Fit the entries to weighted points. If there are not more points than entries, the points are the entries.

        weights: factor of each channel, 1 by default.
        """
        if self.selection == "coreset" and len(points) > self.count:
            points = points[coreset(random_projection(points, PROJECTION, seed, weights), self.count, seed)]
        points = points if weights is None else points * weights
        if len(points) > self.count:
            points = k_means(points, self.count, seed, starts=1, rounds=ROUNDS, plus_plus=False)
        self.entries = points

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
