"""The composition of whole images by their edges and colors, with scales from held-out halves of the images."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metalad.detectors.density.composition import Composition, CompositionScore, level
from metalad.detectors.density.gaussian import PositionalGaussian

EDGE_WEIGHTS = (1.0, 2 / 3)
"""Weights in `CompositionScore` of the residual of the whole map and of the cell where it is largest. Beside the map of
`metal`, composition tells more than beside that of pretrained features."""
EDGE_HALF_WEIGHT_IMAGES = 100
"""Number of good images with which the contribution is half of what it is with very many."""


class EdgeComposition(nn.Module):
    """A `Composition` of edge maps and its contribution to the image score.

    density: fitted on all images. score: its scales come from models of half of the images. The level that corrects it
        is that of the logarithm of the positional distances.
    """

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        """Construct the models, unfitted. grid: positions of the maps, down and across."""
        super().__init__()
        self.channels, self.grid = channels, grid
        self.density = Composition(channels, grid)
        self.score = CompositionScore(EDGE_WEIGHTS, EDGE_HALF_WEIGHT_IMAGES, order=2)

    def fit(
        self,
        own: Float[Tensor, "images channels down across"],
        copies: Float[Tensor, "images channels down across"],
        with_copy: Bool[Tensor, " images"],
        half: Bool[Tensor, " images"],
    ) -> None:
        """Fit the density, and the scales on each half of the images by models that are fitted on the other half.

        With one image there is no other half; the contribution is then 0.

        own, copies: standardized edges of the images, and of a perturbed copy of each. with_copy: whether models are
            fitted on the copy, too.
        half: images of one half; the others are the other one.
        """
        self.density.fit([own, copies[with_copy]])
        images = len(own)
        if images < 2:
            self.score.shrinkage.zero_()
            return
        distances, levels = own.new_empty(2, images, 2), own.new_empty(2, images)
        for held_out in (half, ~half):
            fitted_on = torch.cat([own[~held_out], copies[~held_out & with_copy]])
            density, position = Composition(self.channels, self.grid).to(own.device), PositionalGaussian()
            density.fit([fitted_on])
            position.fit(fitted_on)
            for kind, edges in enumerate((own[held_out], copies[held_out])):
                distances[kind, held_out], levels[kind, held_out] = density(edges), _level(position(edges))
        self.score.fit(distances.flatten(0, 1), levels.flatten(), images)

    def forward(
        self, edges: Float[Tensor, "batch channels down across"], positional: Float[Tensor, "batch down across"]
    ) -> Float[Tensor, " batch"]:
        """Return the contribution of each image, never negative. positional: distances of the positional Gaussian."""
        contribution: Tensor = self.score(self.density(edges), _level(positional))
        return contribution


def _level(distances: Float[Tensor, "batch down across"]) -> Float[Tensor, " batch"]:
    return level(distances.clamp_min(torch.finfo(distances.dtype).tiny).log())
