"""Prediction of the features at a position from the features around it: the principle of MeTAL, applied to features.

A masked encoder predicts the features at each position from those at more distant positions. In a frozen network, the
receptive fields of neighboring positions overlap. Therefore the nearest neighbors are masked, too.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.density.pca import leading_eigenvectors
from metalad.nn.attention import MaskedEncoder, perceptron
from metalad.nn.smoothing import Smoothing
from metalad.runtime.progress import counted
from metalad.training.loop import Training

COMPONENTS = 4
"""Default number of predicted values per position: principal components of the deviations from the mean features."""
POOLED = 2
"""Pooling factor of the feature map; larger if the grid would exceed `MAX_POSITIONS`."""
MAX_POSITIONS = 32
"""Maximum number of positions along a side; the cost of attention is quadratic in the number of positions."""
REACH = 1
"""Neighboring positions that are masked together with the predicted position, in every direction."""
WIDTH, HIDDEN, HEADS, RATIO = 128, 256, 4, 2
MAX_DEVIATION = 3.0
"""Components are clamped to this absolute value before they enter the encoder, so that an anomaly affects the
predictions at other positions less."""
BATCH_SIZE = 4
LEARNING_RATE = 1e-3


class ContextPrediction(nn.Module):
    """The distance of the features at a position from their prediction by the surrounding features.

    The features are pooled, and their mean at each position is subtracted, so that the network does not have to learn
    the mean. mean: [channels, down, across]. directions: [components, channels], project deviations from the mean onto
    their principal components, divided by the root mean square of the components on good images.
    """

    mean: Tensor
    directions: Tensor

    def __init__(
        self, channels: int, grid: tuple[int, int], components: int = COMPONENTS, smoothing_sigma: float = 0.0
    ) -> None:
        """Create the layers for feature maps with `channels` channels and `grid` positions down and across.

        components: predicted values per position at most; not more than channels.
        smoothing_sigma: standard deviation of the Gaussian filter over the distances, in pooled positions.
        """
        super().__init__()
        self.component_count = min(components, channels)
        self.pooling = max(POOLED, math.ceil(max(grid) / MAX_POSITIONS))
        self.grid = (math.ceil(grid[0] / self.pooling), math.ceil(grid[1] / self.pooling))
        self.encoder = MaskedEncoder(
            values=self.component_count,
            positions=torch.cartesian_prod(*(torch.arange(float(side)) for side in self.grid)),
            width=WIDTH,
            embedding_width=HIDDEN,
            heads=HEADS,
            feed_forward_ratio=RATIO,
            depth=1,
            mask="blind",
            neighbours=True,
            reach=REACH,
        )
        self.smoothing = Smoothing(*self.grid, smoothing_sigma)
        self.decoder = perceptron(WIDTH, HIDDEN, self.component_count)
        self.register_buffer("mean", None)
        self.register_buffer("directions", None)

    @classmethod
    def fitted(
        cls,
        batches: Iterable[Float[Tensor, "_ channels down across"]],
        grid: tuple[int, int],
        channel_weights: Float[Tensor, " channels"],
        steps: int,
        seed: int,
        components: int = COMPONENTS,
        smoothing_sigma: float = 0.0,
    ) -> "ContextPrediction":
        """Return a model that is trained on the features of good images, with the mean absolute error.

        Args:
            batches: features of good images; only the pooled ones are held at once.
            grid: positions of the features, down and across.
            channel_weights: multiplied with the deviations of each channel.
            steps: of gradient descent.
            seed: of the initial weights and the batches. The global random generator is not affected.
            components, smoothing_sigma: see `__init__`.
        """
        devices = [channel_weights.device] if channel_weights.is_cuda else []
        with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(seed)
            model = cls(len(channel_weights), grid, components, smoothing_sigma).to(channel_weights.device)
            pooled = [model._pooled(maps) for maps in batches]
            model._fit_components(pooled, channel_weights)
            model._train(torch.cat([model._projected(maps) for maps in pooled]), steps)
        return model.requires_grad_(requires_grad=False).eval()

    def forward(self, maps: Float[Tensor, "batch channels down across"]) -> Float[Tensor, "batch down across"]:
        """Return the distance at each position, interpolated bilinearly between the pooled positions."""
        components = self.components(maps)
        distances = torch.linalg.vector_norm(components - self.expected(components), dim=2)
        smoothed = self.smoothing(distances.reshape(-1, *self.grid))
        return F.interpolate(smoothed[:, None], maps.shape[-2:], mode="bilinear")[:, 0]

    def expected(
        self, components: Float[Tensor, "batch positions components"]
    ) -> Float[Tensor, "batch positions components"]:
        """Predict the components at each position from those at positions farther away than `REACH`."""
        predicted: Tensor = self.decoder(self.encoder(components.clamp(-MAX_DEVIATION, MAX_DEVIATION)))
        return predicted

    def components(
        self, maps: Float[Tensor, "batch channels down across"]
    ) -> Float[Tensor, "batch positions components"]:
        """Return the components at each pooled position."""
        return self._projected(self._pooled(maps))

    def _projected(self, pooled: Tensor) -> Tensor:
        return (pooled - self.mean).flatten(2).transpose(1, 2) @ self.directions.T

    def _pooled(self, maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, self.pooling, ceil_mode=True)

    def _fit_components(self, batches: Sequence[Tensor], channel_weights: Tensor) -> None:
        """Fit mean and directions on batches of pooled features."""
        images = sum(len(maps) for maps in batches)
        self.mean = torch.stack([maps.sum(0) for maps in batches]).sum(0) / images
        covariance = torch.zeros(
            len(channel_weights), len(channel_weights), dtype=torch.double, device=self.mean.device
        )
        for maps in batches:
            deviations = (maps - self.mean).transpose(0, 1).flatten(1) * channel_weights[:, None]
            covariance += (deviations @ deviations.T).double()
        covariance /= images * math.prod(self.grid)
        variances, vectors = leading_eigenvectors(covariance, self.component_count)
        variance = variances.clamp_min(0).mean()
        scale = torch.where(variance > 0, variance, 1.0).sqrt()  # 1 if all images are identical
        self.directions = (vectors.T * channel_weights / scale).float()

    def _train(self, components: Float[Tensor, "images positions components"], steps: int) -> None:
        for parameter in self.decoder[-1].parameters():  # the initial prediction is the mean at the position
            nn.init.zeros_(parameter)
        schedule = Training(learning_rate=LEARNING_RATE, schedule="cosine")
        optimizer = torch.optim.Adam(self.parameters(), fused=True)
        for step in counted(range(steps), "context", "step"):
            optimizer.param_groups[0]["lr"] = schedule.rate(step, steps)
            batch = components[torch.randint(len(components), (BATCH_SIZE,)).to(components.device)]
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(F.l1_loss(self.expected(batch), batch))
            optimizer.step()
