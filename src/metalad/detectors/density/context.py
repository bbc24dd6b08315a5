"""What the features around a place let expect there: MeTAL's question, asked of features.

A blind encoder foretells each place's features from those of places farther off. What a frozen network says of
neighbouring places overlaps, so that the nearest are hidden together with the place itself.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.nn.attention import MaskedEncoder, perceptron
from metalad.runtime.progress import counted
from metalad.training.loop import Training

COMPONENTS = 16
"""Numbers at most that are foretold of a place: the main components of its features' deviations from the usual."""
POOLED = 2
"""Places of the features that are one here, down and across; more where there would be too many."""
MOST_PLACES = 32
"""Down and across: attention compares each with each."""
REACH = 1
"""Places around the one foretold that are hidden with it, in every direction."""
WIDTH, HIDDEN, HEADS, RATIO = 128, 256, 4, 2
MAX_DEVIATION = 3.0
"""A deviation counts for so many units at most where others are foretold from it: an anomaly must not spoil them."""
BATCH_SIZE = 4
LEARNING_RATE = 1e-3


class ContextPrediction(nn.Module):
    """The distance of a place's features from what those around it let expect.

    Features are pooled, and counted as deviations from their mean at each place, so that what is usual at a place need
    not be learnt. mean: [channels, down, across]. directions: [components, channels], by which deviations become what
    is foretold: their main components, in units of the root mean square of good images'.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        """Lay out the parts for maps of so many channels and of `grid` places down and across."""
        super().__init__()
        self.kept = min(COMPONENTS, channels)
        self.pooled = max(POOLED, math.ceil(max(grid) / MOST_PLACES))
        self.grid = (math.ceil(grid[0] / self.pooled), math.ceil(grid[1] / self.pooled))
        self.encoder = MaskedEncoder(
            values=self.kept,
            places=torch.cartesian_prod(*(torch.arange(float(side)) for side in self.grid)),
            width=WIDTH,
            embedding_width=HIDDEN,
            heads=HEADS,
            feed_forward_ratio=RATIO,
            depth=1,
            mask="blind",
            neighbours=True,
            reach=REACH,
        )
        self.decoder = perceptron(WIDTH, HIDDEN, self.kept)
        self.register_buffer("mean", torch.zeros(0, 0, 0))
        self.register_buffer("directions", torch.zeros(0, 0))

    @classmethod
    def fitted(
        cls,
        maps: Float[Tensor, "images channels down across"],
        channel_weights: Float[Tensor, " channels"],
        steps: int,
        seed: int,
    ) -> "ContextPrediction":
        """Return what good images' features teach in so many steps of gradient descent on the mean absolute error.

        share: what a deviation of each channel counts for.
        """
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            made = cls(maps.shape[1], (maps.shape[-2], maps.shape[-1])).to(maps.device)
            made._fit_components(maps, channel_weights)
            made._descend(made.components(maps), steps)
        return made.requires_grad_(requires_grad=False).eval()

    def forward(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch down across"]:
        """Return the distance at each place, between the pooled ones bilinearly."""
        components = self.components(maps)
        distances = torch.linalg.vector_norm(components - self.expected(components), dim=2)
        return F.interpolate(distances.reshape(-1, 1, *self.grid), maps.shape[-2:], mode="bilinear")[:, 0]

    def expected(
        self, components: Float[Tensor, "batch places components"]
    ) -> Float[Tensor, "batch places components"]:
        """Foretell each place's components from those farther off than `REACH`; its own and the nearest have no say."""
        predicted: Tensor = self.decoder(self.encoder(components.clamp(-MAX_DEVIATION, MAX_DEVIATION)))
        return predicted

    def components(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch places components"]:
        """Return what is foretold of each pooled place."""
        deviations = self._pooled(maps) - self.mean
        return deviations.flatten(2).transpose(1, 2) @ self.directions.T

    def _pooled(self, maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, self.pooled, ceil_mode=True)

    def _fit_components(self, maps: Tensor, channel_weights: Tensor) -> None:
        """Learn mean and directions."""
        pooled = self._pooled(maps)
        self.mean = pooled.mean(0)
        deviations = (pooled - self.mean).transpose(0, 1).flatten(1) * channel_weights[:, None]
        values, vectors = torch.linalg.eigh((deviations @ deviations.T).double() / deviations.shape[1])
        square = values[-self.kept :].clamp_min(0).mean()
        unit = torch.where(square > 0, square, 1.0).sqrt()  # of images that are all the same, any
        self.directions = (vectors[:, -self.kept :].T * channel_weights / unit).float()

    def _descend(self, components: Float[Tensor, "images places components"], steps: int) -> None:
        for parameter in self.decoder[-1].parameters():  # at first, what is usual at the place is expected
            nn.init.zeros_(parameter)
        plan = Training(learning_rate=LEARNING_RATE, schedule="cosine")
        optimizer = torch.optim.Adam(self.parameters(), fused=True)
        for step in counted(range(steps), "context", "step"):
            optimizer.param_groups[0]["lr"] = plan.rate(step, steps)
            batch = components[torch.randint(len(components), (BATCH_SIZE,)).to(components.device)]
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(F.l1_loss(self.expected(batch), batch))
            optimizer.step()
