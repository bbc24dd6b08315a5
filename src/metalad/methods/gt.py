"""Geometric transformations (Golan & El-Yaniv 2018, arXiv:1805.10917): anomaly score of a transformation classifier.

A wide residual network (Zagoruyko & Komodakis 2016) is trained to classify which of 72 combinations of flip, shift and
rotation was applied to a good image. For each transformation, a Dirichlet distribution is fitted to the predicted class
probabilities on good images. The anomaly score is the negative log-likelihood of an image's predictions. The paper has
image scores only; metalad adds the anomaly map.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, GradientDetector, Protocol
from metalad.detectors.residuals import Residuals
from metalad.nn.pixels import Pixels, to_batch
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.settings import setting
from metalad.training.loop import Training

MIN_PROBABILITY = 1e-12
"""Lower bound of a class probability, so that its logarithm is finite."""
NEWTON_STEPS, MAX_ROUNDS, TOLERANCE = 5, 1000, 1e-9
CHUNK = 24
"""Transformed images per gradient computation; limits memory."""
HELD_OUT_STEP = 5
"""Held-out image i gets transformation 5 i mod 72; 5 and 72 are coprime, so all transformations occur."""


@dataclass(frozen=True, kw_only=True)
class GeometricTransformationsConfig(DetectorConfig):
    """Settings; the defaults are the paper's for 32×32. For 64×64 the paper has depth 16, widening 8, shift 16."""

    image_size: tuple[int, int] = setting((32, 32), "height and width that images are resized to, in pixels; equal")
    smoothing_sigma: float = setting(1.0, "sigma of the Gaussian smoothing of the map, in resized pixels; 0 = off")
    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "own", "image score: the method's own, or the map's maximum, its mean, the mean of its highest 1 %"
    )
    depth: int = setting(10, "depth of the network: 6 n + 4")
    widening: int = setting(4, "width factor of the network; 1: 16, 32, 64 channels")
    shift: int = setting(8, "shift of the transformations, in pixels")
    transforms: Literal["all", "unshifted"] = setting("all", "all 72 transformations, or the 8 without a shift")

    def __post_init__(self) -> None:
        """Validate the settings."""
        super().__post_init__()
        height, width = self.image_size
        if height != width:
            raise ConfigError(f"image_size is {height}x{width}; height and width must be equal")
        if self.depth < 10 or self.depth % 6 != 4:
            raise ConfigError(f"depth is {self.depth}; it must be 10, 16, 22, ...")
        if self.widening < 1:
            raise ConfigError(f"widening is {self.widening}; it must be at least 1")
        if not 0 < self.shift < height:
            raise ConfigError(f"shift is {self.shift}; it must be more than 0 and less than the image side, {height}")


class WideBlock(nn.Module):
    """Pre-activation residual block: two convolutions, each after batch norm and ReLU, plus a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out down across"]:
        """Return the block's output."""
        activated = F.relu(self.bn1(maps))
        shortcut = maps if self.shortcut is None else self.shortcut(activated)
        branch: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return branch + shortcut


def wide_residual_network(depth: int, widening: int, classes: int) -> nn.Sequential:
    """Return WRN-depth-widening as a classifier of images in [-1, 1] of any size."""
    widths, blocks = [16, 16 * widening, 32 * widening, 64 * widening], (depth - 4) // 6
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    for group in range(3):
        for number in range(blocks):
            inputs = widths[group] if number == 0 else widths[group + 1]
            layers.append(WideBlock(inputs, widths[group + 1], 2 if group and number == 0 else 1))
    layers += [nn.BatchNorm2d(widths[3]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(widths[3], classes))


class GeometricTransformations(GradientDetector):
    """A classifier of transformations, and one Dirichlet distribution of its predictions per transformation.

    source: [transforms, pixels], the source index of each pixel of a transformed image.
    alpha: [transforms, transforms], the Dirichlet parameters of each transformation in a row.
    score_mean, score_deviation: of the negative log-likelihood of held-out good images.
    typical: [3, height, width], the mean good image.
    """

    name = "gt"
    not_exportable = "the anomaly map is a gradient by the pixels, and exported graphs compute no gradients"
    min_images = 2
    has_own_score = True
    config: GeometricTransformationsConfig
    source: Tensor
    alpha: Tensor
    score_mean: Tensor
    score_deviation: Tensor
    typical: Tensor

    def __init__(self, config: GeometricTransformationsConfig) -> None:
        super().__init__(config)
        shift = config.shift if config.transforms == "all" else 0
        self.register_buffer("source", source_indices(config.image_size[0], shift), persistent=False)
        self.network = wide_residual_network(config.depth, config.widening, self.classes)
        self.register_buffer("alpha", torch.ones(self.classes, self.classes))
        self.register_buffer("score_mean", torch.zeros((), dtype=torch.double))
        self.register_buffer("score_deviation", torch.ones((), dtype=torch.double))
        self.register_buffer("typical", torch.zeros(3, *config.image_size))

    @property
    def classes(self) -> int:
        """Number of transformations."""
        return len(self.source)

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the paper's plan, ceil(200 / 72) epochs of all 72 transformed copies; or minutes on a CPU."""
        # Keras' penalty is 2.5e-4 times the squared weights; its gradient has twice that factor.
        common = {"learning_rate": 1e-3, "batch_size": 128, "weight_decay": 5e-4, "keep": "last"}
        if protocol == "paper":
            return (Training(**common, max_epochs=-(-200 // self.classes) * self.classes),)  # type: ignore[arg-type]
        return (Training(**common, steps=400, schedule="cosine"),)  # type: ignore[arg-type]

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """Check the number of images.

        Raises:
            DataError: fewer than two images.
        """
        del stage, seed
        if len(pixels) < self.min_images:
            raise DataError(f"gt needs at least {self.min_images} good images to train on, got {len(pixels)}")

    def transformed(
        self, images: Float[Tensor, "batch channels height width"], indices: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return each image flipped, then shifted (padded by reflection), then rotated."""
        source = self.source[indices][:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, source).reshape(images.shape)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the cross-entropy of the transformation classes; in training, transformations are random."""
        if self.training:
            indices = torch.randint(self.classes, (len(images),), device=images.device)
        else:
            indices = torch.arange(len(images), device=images.device) * HELD_OUT_STEP % self.classes
        return F.cross_entropy(self.logits(images, indices), indices)

    def logits(
        self, images: Float[Tensor, "batch 3 height width"], indices: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch transforms"]:
        """Return the class logits of transformed images."""
        logits: Tensor = self.network(2 * self.transformed(images, indices) - 1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is too coarse for the loss

    def log_probabilities(
        self, image: Float[Tensor, "1 3 height width"], indices: Int[Tensor, " some"]
    ) -> Float[Tensor, "some transforms"]:
        """Return the log class probabilities of an image under the given transformations."""
        return (
            self.logits(image.expand(len(indices), -1, -1, -1), indices)
            .log_softmax(1)
            .clamp_min(torch.tensor(MIN_PROBABILITY).log())
        )

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Fit the distributions on the training images, and the standardization of the score on held-out images."""
        with torch.no_grad():
            self.typical.copy_(to_batch(training, self.device).mean(0))
            all_indices = torch.arange(self.classes, device=self.device)
            log_probabilities = torch.stack(
                [self.log_probabilities(image, all_indices) for image in self._images(training)], 1
            )
            self.alpha.copy_(fit_dirichlet(log_probabilities))
        calibration_images = held_out if len(held_out) > 1 else training
        scores = torch.stack([self._score_and_gradient(image)[0] for image in self._images(calibration_images)])
        self.score_mean.copy_(scores.mean())
        self.score_deviation.copy_(scores.std().clamp_min(1e-3))

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the image score, and each pixel's contribution to it by its deviation from the mean good image.

        The score is the mean negative log-likelihood over transformations, standardized by held-out good images, and
        passed through softplus. The residual is the gradient of the standardized score, times the deviation, times
        the number of pixels. The paper has no map.
        """
        scores, residuals = [], []
        for image in torch.split(images, 1):
            score, gradient = self._score_and_gradient(image)
            scores.append(F.softplus((score - self.score_mean) / self.score_deviation).to(images.dtype))
            residuals.append(
                gradient * (image - self.typical) * (image[0, 0].numel() / self.score_deviation).to(images.dtype)
            )
        return Residuals(torch.cat(residuals), score=torch.stack(scores))

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the absolute contribution of each pixel, summed over colors."""
        return residuals.values.abs().sum(1)

    def _score_and_gradient(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return an image's score in nats, and the score's gradient with respect to the image."""
        with torch.inference_mode(False), torch.enable_grad():
            image, alpha = image.clone().requires_grad_(), self.alpha.double()
            score, gradient = alpha.new_zeros(()), torch.zeros_like(image)
            for indices in torch.split(torch.arange(self.classes, device=image.device), CHUNK):
                # Double precision: narrow distributions have large parameters, whose terms cancel in the sum.
                part = -((alpha[indices] - 1) * self.log_probabilities(image, indices).double()).sum() / self.classes
                gradient += torch.autograd.grad(part, image)[0]
                score += part.detach()
        return score, gradient

    def _images(self, pixels: Pixels) -> list[Tensor]:
        return [to_batch(pixels[index : index + 1], self.device) for index in range(len(pixels))]


def source_indices(side: int, shift: int) -> Int[Tensor, "transforms pixels"]:
    """Return, for each transformation, the source index of each pixel; shift 0 gives 8 transformations, not 72."""
    shifts = (0, -shift, shift) if shift else (0,)
    positions = torch.arange(side * side).reshape(side, side)
    indices = []
    for flip, across, down, quarter_turns in product((False, True), shifts, shifts, range(4)):
        image = positions.flip(1) if flip else positions
        image = image[_reflected(side, down)][:, _reflected(side, across)]
        indices.append(image.rot90(quarter_turns).flatten())
    return torch.stack(indices)


def _reflected(side: int, shift: int) -> Tensor:
    """Return the source index of each position of a shifted line, with reflection at the ends."""
    position = (torch.arange(side) - shift).abs()
    return torch.where(position < side, position, 2 * (side - 1) - position)


def fit_dirichlet(
    log_samples: Float[Tensor, "distributions samples classes"],
) -> Float[Tensor, "distributions classes"]:
    """Return the maximum-likelihood parameters of Dirichlet distributions, given the logarithms of samples.

    Fixed-point iteration of Minka (2000), initialized as in Wicker et al. (2008); see the paper's appendix.
    """
    logs = log_samples.double()
    mean_log, mean = logs.mean(1), logs.exp().mean(1)
    divergence = (mean * (mean.log() - mean_log)).sum(1, keepdim=True).clamp_min(1e-9)
    alpha = mean * (mean.shape[1] - 1) * -torch.digamma(torch.ones_like(divergence)) / divergence
    for _ in range(MAX_ROUNDS):
        updated = _inverse_digamma(torch.digamma(alpha.sum(1, keepdim=True)) + mean_log)
        change = float(((updated - alpha).abs() / alpha).max())
        alpha = updated
        if change < TOLERANCE:
            break
    return alpha.float()


def _inverse_digamma(values: Tensor) -> Tensor:
    solution = torch.where(values >= -2.22, values.exp() + 0.5, -1 / (values - torch.digamma(torch.ones_like(values))))
    for _ in range(NEWTON_STEPS):
        solution = solution - (torch.digamma(solution) - values) / torch.polygamma(1, solution)
    return solution
