"""Geometric transformations (Golan & El-Yaniv 2018, arXiv:1805.10917): an image that hides how it was turned is odd.

A wide residual network (Zagoruyko & Komodakis 2016) learns to tell which of 72 flips, shifts and turns was done to a
good image. What it answers for each of them follows, on good images, a Dirichlet law; an image is as abnormal as its
answers are unlikely. The paper judges whole images; the map is ours.
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

LEAST = 1e-12
"""No answer is less probable: the logarithm of 0 is no number."""
NEWTON_STEPS, MAX_ROUNDS, TOLERANCE = 5, 1000, 1e-9
CHUNK = 24
"""Transformed images whose gradients are held at once."""
STRIDE = 5
"""Held-out image i is transformed the (5 i)th way; 5 and 72 have no common divisor, so all ways come about."""


@dataclass(frozen=True, kw_only=True)
class GeometricTransformationsConfig(DetectorConfig):
    """Settings; the paper's for 32×32. Its for 64×64 are depth 16, widening 8, shift 16."""

    image_size: tuple[int, int] = setting((32, 32), "height and width that images are resized to, in pixels; equal")
    smoothing_sigma: float = setting(1.0, "Gaussian filter over the anomaly map, in pixels of that size; 0 = none")
    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "own", "image score: the method's own, or the map's maximum, its mean, the mean of its highest 1 %"
    )
    depth: int = setting(10, "convolutions in a row; 4 more than a multiple of 6")
    widening: int = setting(4, "channels, as a multiple of the plain network's 16, 32, 64")
    shift: int = setting(8, "pixels of a shift")
    transforms: Literal["all", "unshifted"] = setting("all", "all 72 transformations, or the 8 without a shift")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        height, width = self.image_size
        if height != width:
            raise ConfigError(f"image_size is {height}x{width}; a quarter turn needs height and width to be equal")
        if self.depth < 10 or self.depth % 6 != 4:
            raise ConfigError(f"depth is {self.depth}; it must be 10, 16, 22, ...")
        if self.widening < 1:
            raise ConfigError(f"widening is {self.widening}; it must be at least 1")
        if not 0 < self.shift < height:
            raise ConfigError(f"shift is {self.shift}; it must be more than 0 and less than the image's side, {height}")


class WideBlock(nn.Module):
    """Two convolutions, each after batch norm and ReLU, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out down across"]:
        """Return the block's maps."""
        ready = F.relu(self.bn1(maps))
        kept = maps if self.shortcut is None else self.shortcut(ready)
        changed: Tensor = self.conv2(F.relu(self.bn2(self.conv1(ready))))
        return changed + kept


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
    """A classifier of transformations, and for each of them the Dirichlet law of its answers on good images.

    source: [ways, pixels], where each pixel of a transformed image comes from. alpha: [ways, ways], a law a line.
    usual, deviation: of the unlikelihood of held-out good images. typical: [3, height, width], the mean good image.
    """

    name = "gt"
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
        self.register_buffer("source", sources(config.image_size[0], shift), persistent=False)
        self.network = wide_residual_network(config.depth, config.widening, self.ways)
        self.register_buffer("alpha", torch.ones(self.ways, self.ways))
        self.register_buffer("score_mean", torch.zeros((), dtype=torch.double))
        self.register_buffer("score_deviation", torch.ones((), dtype=torch.double))
        self.register_buffer("typical", torch.zeros(3, *config.image_size))

    @property
    def ways(self) -> int:
        """The number of transformations."""
        return len(self.source)

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return the paper's descent, ceil(200 / 72) passes over each image in all 72 ways; or minutes on a CPU."""
        # Keras' penalty is 2.5e-4 times the squared weights; its gradient has twice that.
        common = {"learning_rate": 1e-3, "batch_size": 128, "weight_decay": 5e-4, "keep": "last"}
        if protocol == "paper":
            return (Training(**common, max_epochs=-(-200 // self.ways) * self.ways),)  # type: ignore[arg-type]
        return (Training(**common, steps=400, schedule="cosine"),)  # type: ignore[arg-type]

    def prepare(self, stage: str, pixels: Pixels, seed: int) -> None:
        """See whether a law can be learnt.

        Raises:
            DataError: fewer than two images.
        """
        del stage, seed
        if len(pixels) < 2:
            raise DataError(f"gt needs at least 2 good images to learn a law from, got {len(pixels)}")

    def transformed(
        self, images: Float[Tensor, "batch channels height width"], ways: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return each image flipped, then shifted (what comes in is its mirror image), then turned."""
        source = self.source[ways][:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, source).reshape(images.shape)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the cross-entropy of the way that each image was transformed; in training it is drawn by chance."""
        if self.training:
            ways = torch.randint(self.ways, (len(images),), device=images.device)
        else:
            ways = torch.arange(len(images), device=images.device) * STRIDE % self.ways
        return F.cross_entropy(self.logits(images, ways), ways)

    def logits(
        self, images: Float[Tensor, "batch 3 height width"], ways: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch ways"]:
        """Return what the network says of images after transforming them."""
        logits: Tensor = self.network(2 * self.transformed(images, ways) - 1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))  # the loss is no matter for bfloat16

    def log_answers(
        self, image: Float[Tensor, "1 3 height width"], ways: Int[Tensor, " some"]
    ) -> Float[Tensor, "some ways"]:
        """Return the logarithm of the network's answers for an image transformed in some ways."""
        return (
            self.logits(image.expand(len(ways), -1, -1, -1), ways).log_softmax(1).clamp_min(torch.tensor(LEAST).log())
        )

    def conclude(self, training: Pixels, held_out: Pixels) -> None:
        """Learn the laws from the training images, and the units of the score from held-out ones."""
        with torch.no_grad():
            self.typical.copy_(to_batch(training, self.device).mean(0))
            every = torch.arange(self.ways, device=self.device)
            answers = torch.stack([self.log_answers(image, every) for image in self._one_by_one(training)], 1)
            self.alpha.copy_(dirichlet(answers))
        units = held_out if len(held_out) > 1 else training
        scores = torch.stack([self._unlikely(image)[0] for image in self._one_by_one(units)])
        self.score_mean.copy_(scores.mean())
        self.score_deviation.copy_(scores.std().clamp_min(1e-3))

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the image score, and how much each pixel's departure from the mean good image adds to it.

        The score is the negative log-likelihood of the answers, the mean over transformations, in units of held-out
        good images, made positive by softplus. The residual is its gradient times the departure, times the number of
        pixels. The paper has no map.
        """
        scores, residuals = [], []
        for image in torch.split(images, 1):
            score, gradient = self._unlikely(image)
            scores.append(F.softplus((score - self.score_mean) / self.score_deviation).to(images.dtype))
            residuals.append(
                gradient * (image - self.typical) * (image[0, 0].numel() / self.score_deviation).to(images.dtype)
            )
        return Residuals(torch.cat(residuals), score=torch.stack(scores))

    def raw_map(self, residuals: Residuals) -> Float[Tensor, "batch height width"]:
        """Return the size of what each pixel adds, summed over colours."""
        return residuals.values.abs().sum(1)

    def _unlikely(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return an image's score in nats, and its gradient by the image."""
        with torch.inference_mode(False), torch.enable_grad():
            image, alpha = image.clone().requires_grad_(), self.alpha.double()
            score, gradient = alpha.new_zeros(()), torch.zeros_like(image)
            for ways in torch.split(torch.arange(self.ways, device=image.device), CHUNK):
                # In double precision: sharp laws have large parameters, and the sum cancels.
                part = -((alpha[ways] - 1) * self.log_answers(image, ways).double()).sum() / self.ways
                gradient += torch.autograd.grad(part, image)[0]
                score += part.detach()
        return score, gradient

    def _one_by_one(self, pixels: Pixels) -> list[Tensor]:
        return [to_batch(pixels[index : index + 1], self.device) for index in range(len(pixels))]


def sources(side: int, shift: int) -> Int[Tensor, "ways pixels"]:
    """Return, for each way, the index of the pixel that comes to each place; without a shift there are 8 ways."""
    shifts = (0, -shift, shift) if shift else (0,)
    places = torch.arange(side * side).reshape(side, side)
    found = []
    for flip, across, down, turns in product((False, True), shifts, shifts, range(4)):
        image = places.flip(1) if flip else places
        image = image[_mirrored(side, down)][:, _mirrored(side, across)]
        found.append(image.rot90(turns).flatten())
    return torch.stack(found)


def _mirrored(side: int, shift: int) -> Tensor:
    """Return where each place of a line comes from when it is shifted; from outside comes the mirror image."""
    place = (torch.arange(side) - shift).abs()
    return torch.where(place < side, place, 2 * (side - 1) - place)


def dirichlet(log_answers: Float[Tensor, "laws samples classes"]) -> Float[Tensor, "laws classes"]:
    """Return the parameters of the likeliest Dirichlet law of some probability vectors, given by their logarithms.

    The fixed point of Minka (2000), from the start of Wicker et al. (2008), as in the paper's appendix.
    """
    logs = log_answers.double()
    mean_log, mean = logs.mean(1), logs.exp().mean(1)
    apart = (mean * (mean.log() - mean_log)).sum(1, keepdim=True).clamp_min(1e-9)
    alpha = mean * (mean.shape[1] - 1) * -torch.digamma(torch.ones_like(apart)) / apart
    for _ in range(MAX_ROUNDS):
        moved = _inverse_digamma(torch.digamma(alpha.sum(1, keepdim=True)) + mean_log)
        change = float(((moved - alpha).abs() / alpha).max())
        alpha = moved
        if change < TOLERANCE:
            break
    return alpha.float()


def _inverse_digamma(values: Tensor) -> Tensor:
    found = torch.where(values >= -2.22, values.exp() + 0.5, -1 / (values - torch.digamma(torch.ones_like(values))))
    for _ in range(NEWTON_STEPS):
        found = found - (torch.digamma(found) - values) / torch.polygamma(1, found)
    return found
