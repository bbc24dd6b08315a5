"""What methods share that train a network against another: losses, the gradient penalty, strided stacks, a stage."""

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
"""Augmented images that Bergmann et al. (CVPR 2019) count as an epoch, whatever the number of real ones."""
INITIAL_DEVIATION = 0.02
SLOPE = 0.2


@dataclass(frozen=True, kw_only=True)
class GanConfig(DetectorConfig):
    """Settings of the methods that draw images from codes."""

    image_score: Literal["max", "mean", "top-k", "own"] = setting(
        "own", "image score: the method's own error, or the map's maximum, its mean, the mean of its highest 1 %"
    )
    width: int = setting(8, "channels of the first layer, of which the others' are multiples; as published: 64")
    latent: int = setting(64, "length of the code that an image is drawn from")
    degrees: float = setting(5.0, "training images are turned by up to so many degrees, either way")
    shift: float = setting(0.02, "training images are moved by up to this part of their side, either way")
    flip: bool = setting(True, "half of the training images are mirrored; false for what has a left and a right")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if min(self.width, self.latent) < 1:
            raise ConfigError("width and latent must be at least 1")
        check_augmentation(self.degrees, self.shift)

    def augmented(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Return each image turned, shifted and mirrored by chance."""
        return augment(images, degrees=self.degrees, shift=self.shift, flip=self.flip)


def grid_of(image_size: tuple[int, int], halvings: int) -> tuple[int, int]:
    """Return the places down and across that are left of an image after so many halvings, at least two each.

    Raises:
        ConfigError: the image cannot be halved so often.
    """
    height, width = (side >> halvings for side in image_size)
    if any(side % 2**halvings for side in image_size) or min(height, width) < 2:
        raise ConfigError(
            f"image_size is {image_size[0]}x{image_size[1]}; the networks halve it {halvings} times: take multiples of "
            f"{2**halvings} from {2 ** (halvings + 1)} on"
        )
    return height, width


def signed(images: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Turn images in [0, 1] into the range of a generator that ends in a hyperbolic tangent, [-1, 1]."""
    return 2 * images - 1


def unsigned(images: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Turn images in [-1, 1] into images in [0, 1]."""
    return (images + 1) / 2


def adversarial_loss(logits: Float[Tensor, "*batch"], *, real: bool) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of a discriminator's logits, where all should be called real, or all fake.

    With `real` for a generator's images, this is the generator's own loss that does not saturate (Goodfellow 2014).
    """
    wanted = torch.full_like(logits, float(real), dtype=torch.float32)
    return F.binary_cross_entropy_with_logits(logits.float(), wanted)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Float[Tensor, "batch 3 height width"],
    fake: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, ""]:
    """Return the mean of (‖∇critic‖ − 1)² at a point drawn between each real image and a fake (Gulrajani 2017, eq. 3).

    The norm is that of all pixels of an image. The critic must treat the images of a batch apart, so no batch norm.
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    between = (real + share * (fake.to(real.dtype) - real)).detach().requires_grad_()
    # A gradient of a gradient drowns in half precision; autocast must not touch it.
    with torch.autocast(real.device.type, enabled=False):
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty: Tensor = (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().mean()
    return penalty


def start_small(network: nn.Module) -> None:
    """Draw the initial weights of all convolutions and linear layers as DCGAN does (Radford 2016): N(0, 0.02²)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=INITIAL_DEVIATION)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, mean=1.0, std=INITIAL_DEVIATION)


def halving(channels: Sequence[int], *, kernel: int, padding: int) -> nn.Sequential:
    """Stack convolutions of stride 2, each with batch norm, but for the first, and leaky ReLU (Radford 2016)."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(channels)):
        layers.append(nn.Conv2d(before, after, kernel, 2, padding, bias=number == 0))
        if number:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)


def doubling(channels: Sequence[int], *, kernel: int, padding: int) -> nn.Sequential:
    """Stack transposed convolutions of stride 2, each with batch norm and ReLU (Radford 2016)."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        convolution = nn.ConvTranspose2d(before, after, kernel, 2, padding, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class Stage(Learner):
    """A stage of training in which some networks of a method learn, and its others stay in evaluation mode.

    held_out: the loss to validate by; gradients are off while it is computed.
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
        """Return the loss that held-out images are judged by."""
        return self._held_out(images)

    def objectives(self) -> tuple[Objective, ...]:
        """Return what a step minimises, one after the other."""
        return self._objectives


def parameters_of(*networks: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the parameters of several networks, as an objective wants them."""
    return tuple(parameter for network in networks for parameter in network.parameters())
