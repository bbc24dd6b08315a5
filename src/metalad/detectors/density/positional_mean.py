"""The mean of good images' normalized log-distances at each position, which is subtracted where it is above average."""

from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.density.gaussian import variance_explained_by_position
from metalad.nn.smoothing import Smoothing

SMOOTHING_SIGMA = 1.0
"""Standard deviation, in positions, of the Gaussian filter of the mean: objects are not always at the same position."""
QUARTER_WEIGHT_IMAGES = 100
"""Number of good images with which a quarter as much is subtracted as with very many: the mean of few is uncertain."""


class PositionalMean(nn.Module):
    """What is subtracted from a map of normalized log-distances at each position.

    Distances of good images are larger at some positions than at others: at an outline, or on a print that varies. A
    large distance is a weaker sign of an anomaly there. The map's mean on held-out good images is smoothed, and a
    fraction of what exceeds its average is subtracted. Nothing is added where the mean is below average: noise on a
    plain background would become an anomaly. The fraction is ε (n / (n + `QUARTER_WEIGHT_IMAGES`))², where n is the
    number of good images and ε the fraction of the map's variance that position explains, small on textures.

    excess: [down, across], what is subtracted; never negative.
    """

    excess: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("excess", None)

    def fit(self, maps: Float[Tensor, "maps down across"], images: int) -> None:
        """Fit on maps of held-out good images and copies of them. images: how many there are without copies."""
        mean = maps.mean(0)
        smoothed = Smoothing(mean.shape[0], mean.shape[1], SMOOTHING_SIGMA).to(mean.device)(mean)
        explained = variance_explained_by_position(maps[:, None])
        fraction = explained * (images / (images + QUARTER_WEIGHT_IMAGES)) ** 2
        self.excess = fraction * (smoothed - smoothed.mean()).clamp_min(0)

    def forward(self, maps: Float[Tensor, "batch down across"]) -> Float[Tensor, "batch down across"]:
        """Return the maps less the excess."""
        return maps - self.excess
