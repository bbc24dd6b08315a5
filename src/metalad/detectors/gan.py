"""Shared parts of the GAN-based methods: settings, losses, gradient penalty, convolution stacks, training stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig
from metalad.nn.augmentation import augment, check_augmentation
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Learner, Objective

EPOCH_IMAGES = 10_000
"""Augmented images per epoch in Bergmann et al. (CVPR 2019), independent of the number of training images."""
INITIAL_DEVIATION = 0.02
SLOPE = 0.2
"""Negative slope of the leaky ReLU."""


@dataclass(frozen=True, kw_only=True)
class GanConfig(DetectorConfig):
    """Settings of the methods that generate images from latent codes."""

    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "own", "image score: the method's own error, or maximum, mean, or mean of the highest 1 % of the map"
    )
    width: int = setting(8, "channels of the first layer; those of the others are multiples; 64 in the paper")
    latent: int = setting(64, "length of the latent code that an image is generated from")
    degrees: float = setting(5.0, "maximum rotation of training images, in degrees, in both directions")
    shift: float = setting(0.02, "maximum shift of training images, as a fraction of their side, in all directions")
    flip: bool = setting(True, "mirror half of the training images; false for objects that are not symmetric")

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if min(self.width, self.latent) < 1:
            raise ConfigError("width and latent must be at least 1")
        check_augmentation(self.degrees, self.shift)

    def augmented(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Return randomly rotated, shifted and mirrored images."""
        return augment(images, degrees=self.degrees, shift=self.shift, flip=self.flip)


def bottleneck_size(image_size: tuple[int, int], halvings: int) -> tuple[int, int]:
    """Return the height and width of an image after a number of halvings; each is at least 2.

    Raises:
        ConfigError: the image cannot be halved that many times.
    """
    height, width = (side >> halvings for side in image_size)
    if any(side % 2**halvings for side in image_size) or min(height, width) < 2:
        raise ConfigError(
            f"image_size is {image_size[0]}x{image_size[1]}; the networks halve it {halvings} times: use multiples of "
            f"{2**halvings}, at least {2 ** (halvings + 1)}"
        )
    return height, width


def signed(images: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Convert images from [0, 1] to [-1, 1], the output range of a generator with a final hyperbolic tangent."""
    return 2 * images - 1


def unsigned(images: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Convert images from [-1, 1] to [0, 1]."""
    return (images + 1) / 2


def adversarial_loss(logits: Float[Tensor, "*batch"], *, real: bool) -> Float[Tensor, ""]:
    """Return the mean binary cross-entropy of a discriminator's logits, with the target real or fake for all images.

    For generated images and `real=True`, this is the non-saturating loss of the generator (Goodfellow 2014).
    """
    target = torch.full_like(logits, float(real), dtype=torch.float32)
    return F.binary_cross_entropy_with_logits(logits.float(), target)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Float[Tensor, "batch 3 height width"],
    fake: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, ""]:
    """Return the mean of (‖∇critic‖ − 1)² at random points between real and fake images (Gulrajani 2017, eq. 3).

    The norm is computed over all pixels of an image. The critic must process the images of a batch independently, so it
    must not contain batch normalization.
    """
    fraction = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    interpolated = (real + fraction * (fake.to(real.dtype) - real)).detach().requires_grad_()
    # Second-order gradients are too inaccurate in half precision, so autocast is disabled.
    with torch.autocast(real.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(critic(interpolated).sum(), interpolated, create_graph=True)
    penalty: Tensor = (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1).square().mean()
    return penalty


def initialize_weights(network: nn.Module) -> None:
    """Initialize the weights of all convolutions and linear layers from N(0, 0.02²), as in DCGAN (Radford 2016)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=INITIAL_DEVIATION)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, mean=1.0, std=INITIAL_DEVIATION)


def strided_convolutions(channels: Sequence[int], *, kernel: int, padding: int) -> nn.Sequential:
    """Stack convolutions of stride 2 with leaky ReLU; all but the first have batch normalization (Radford 2016)."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        layers.append(nn.Conv2d(inputs, outputs, kernel, 2, padding, bias=index == 0))
        if index:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)


def transposed_convolutions(channels: Sequence[int], *, kernel: int, padding: int) -> nn.Sequential:
    """Stack transposed convolutions of stride 2 with batch normalization and ReLU (Radford 2016)."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        convolution = nn.ConvTranspose2d(inputs, outputs, kernel, 2, padding, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class Stage(Learner):
    """A training stage in which some networks of a method are trained and the others stay in evaluation mode.

    held_out: the validation loss; it is computed without gradients.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        objectives: Sequence[Objective],
        held_out: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self._objectives, self._held_out = tuple(objectives), held_out

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the validation loss."""
        return self._held_out(images)

    def objectives(self) -> tuple[Objective, ...]:
        """Return the objectives that a training step minimizes one after the other."""
        return self._objectives


def parameters_of(*networks: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the parameters of several networks, for an `Objective`."""
    return tuple(parameter for network in networks for parameter in network.parameters())
