"""The convolutional autoencoder of Bergmann et al. (VISAPP 2019; CVPR 2019), which two methods train with other losses.

The network encodes an image into a code of 100 values and decodes it. Images of objects are reconstructed as a whole.
Images of textures are reconstructed in square tiles, and the values of overlapping tiles are averaged.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalad.detectors.base import DetectorConfig, Protocol
from metalad.detectors.reconstruction import Reconstructor
from metalad.detectors.residuals import Residuals
from metalad.nn.augmentation import augment, check_augmentation
from metalad.nn.tiling import check_tiles, mean_over_tiles, random_tiles
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import setting
from metalad.training.loop import Training

SLOPE = 0.2
"""Negative slope of the leaky ReLU."""
MIN_HALVINGS = 4
"""Minimum number of convolutions with stride 2 in the encoder."""


def halvings(image_size: tuple[int, int], minimum: int) -> int:
    """Return the number of halvings after which the shorter side of an image is 8 to 15 pixels, but at least `minimum`.

    Raises:
        ConfigError: a side cannot be halved that many times.
    """
    count = max(minimum, int(math.log2(min(image_size) / 8)))
    if any(side % 2**count for side in image_size):
        height, width = image_size
        raise ConfigError(f"the network halves {height}x{width} pixels {count} times; use multiples of {2**count}")
    return count


class Autoencoder(nn.Module):
    """A convolutional encoder and a mirrored decoder; 1.05M parameters for 128 px, 1.08M for 256.

    For 128 pixels, the layers are those of the table in the paper of 2018. For 256 pixels, the encoder starts with one
    additional convolution of stride 2 with `width` channels, and the decoder ends with its mirror image, as in the CVPR
    paper. Other sizes get as many of them as they need.
    """

    def __init__(self, channels: int, image_size: tuple[int, int], code: int, width: int) -> None:
        super().__init__()
        count = halvings(image_size, MIN_HALVINGS)
        extra = count - MIN_HALVINGS
        grid = (image_size[0] >> count, image_size[1] >> count)
        down = [width] * (2 + extra)
        self.encoder = nn.Sequential(
            *_layers([channels, *down], nn.Conv2d, 4),
            *_layers([width, width], nn.Conv2d, 3),
            *_layers([width, 2 * width], nn.Conv2d, 4),
            *_layers([2 * width, 2 * width], nn.Conv2d, 3),
            *_layers([2 * width, 4 * width], nn.Conv2d, 4),
            *_layers([4 * width, 2 * width, width], nn.Conv2d, 3),
            nn.Conv2d(width, code, grid),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(code, width, grid),
            nn.LeakyReLU(SLOPE),
            *_layers([width, 2 * width, 4 * width], nn.Conv2d, 3),
            *_layers([4 * width, 2 * width], nn.ConvTranspose2d, 4),
            *_layers([2 * width, 2 * width], nn.Conv2d, 3),
            *_layers([2 * width, width], nn.ConvTranspose2d, 4),
            *_layers([width, width], nn.Conv2d, 3),
            *_layers(down, nn.ConvTranspose2d, 4),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )
        _initialize(self)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the reconstructions of images of the size that the network was created for."""
        # With the channels-last memory format, convolutions on a CPU are a quarter faster.
        reconstruction: Tensor = self.decoder(self.encoder(images.contiguous(memory_format=torch.channels_last)))
        return reconstruction.float().contiguous()


def _layers(channels: list[int], layer: type[nn.Conv2d] | type[nn.ConvTranspose2d], kernel: int) -> list[nn.Module]:
    """Return layers with the given numbers of channels; a kernel of 4 halves or doubles the image size (stride 2)."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [layer(inputs, outputs, kernel, 2 if kernel == 4 else 1, 1), nn.LeakyReLU(SLOPE)]
    return layers


def _initialize(network: nn.Module) -> None:
    """Initialize the weights so that the variance of a signal is the same in all layers (He et al. 2015, eq. 14).

    With the default initialization of PyTorch, the outputs for two noise images differ by only 1e-8, and the network
    returns the same gray image during the first hundreds of training steps.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            taps = math.prod(layer.kernel_size)
            if isinstance(layer, nn.ConvTranspose2d):  # an output pixel uses only every stride-th tap of the kernel
                taps = taps // math.prod(layer.stride) if layer.stride[0] > 1 else 1
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / (1 + SLOPE**2) / (taps * layer.in_channels)))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(DetectorConfig):
    """Settings of the methods that train this autoencoder. The defaults are for objects."""

    image_size: tuple[int, int] = setting(
        (128, 128), "height and width that images are resized to; 256 for objects in the papers"
    )
    tile: int | None = setting(
        None, "side of the square tiles that are reconstructed, for textures; none: the whole image"
    )
    stride: int = setting(30, "distance between neighboring tiles, in pixels")
    code: int = setting(100, "length of the code of an image or a tile")
    width: int = setting(32, "channels of the first layer")
    degrees: float = setting(0.0, "maximum rotation of training images, in degrees, in both directions")
    shift: float = setting(0.0, "maximum shift of training images, as a fraction of their side, in all directions")
    flip: bool = setting(False, "mirror half of the training images horizontally")

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.tile is not None:
            check_tiles(self.image_size, self.tile, self.stride)
        halvings(self.network_input_size, MIN_HALVINGS)
        if min(self.code, self.width) < 1:
            raise ConfigError("code and width must be at least 1")
        check_augmentation(self.degrees, self.shift)

    @property
    def network_input_size(self) -> tuple[int, int]:
        """Height and width of the network's input: the image, or a tile."""
        return self.image_size if self.tile is None else (self.tile, self.tile)


class AutoencoderDetector(Reconstructor):
    """A method that trains the autoencoder; a subclass defines the network input, the error map and the loss.

    channels: of the network input.
    """

    channels: ClassVar[int] = 3
    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.autoencoder = Autoencoder(self.channels, config.network_input_size, config.code, config.width)

    def network_input(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the network input for RGB images: the images themselves by default."""
        return images

    @abstractmethod
    def error(
        self,
        reconstruction: Float[Tensor, "batch channels height width"],
        inputs: Float[Tensor, "batch channels height width"],
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the error of each pixel and channel, at least 0; its sum over channels is the map of the paper."""

    @abstractmethod
    def mean_error(
        self,
        reconstruction: Float[Tensor, "batch channels height width"],
        inputs: Float[Tensor, "batch channels height width"],
    ) -> Float[Tensor, ""]:
        """Return the mean error, which is the training loss."""

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return 200 epochs of 10,000 patches for the paper's protocol, else a cosine schedule with small batches."""
        if protocol == "paper":
            return (Training(learning_rate=2e-4, batch_size=128, steps=200 * 10_000 // 128, weight_decay=1e-5),)
        return (Training(learning_rate=1e-3, batch_size=8, steps=3600, schedule="cosine"),)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the mean error of images or of a random tile of each; in evaluation mode, of all tiles."""
        config, inputs = self.config, self.network_input(images)
        if self.training and (config.degrees or config.shift or config.flip):
            inputs = augment(inputs, degrees=config.degrees, shift=config.shift, flip=config.flip)
        if config.tile is None:
            return self.mean_error(self.autoencoder(inputs), inputs)
        if self.training:
            tiles = random_tiles(inputs, config.tile)
            return self.mean_error(self.autoencoder(tiles), tiles)
        return self.mean_error(mean_over_tiles(self.autoencoder, inputs, config.tile, config.tile), inputs)

    def reconstruct(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Return the reconstructions; overlapping tiles are averaged, and gray is repeated in all three channels."""
        return self._apply_function(self.autoencoder, self.network_input(images)).expand(-1, 3, -1, -1)

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the square root of the error of each channel, with the sign of reconstruction minus image.

        Where tiles overlap, their errors are averaged, as in the paper. The squared residuals are the map of the paper.
        """
        inputs = self.network_input(images)
        outputs = self._apply_function(self._reconstruction_and_error, inputs)
        reconstruction, error = outputs[:, : self.channels], outputs[:, self.channels :]
        size = error.sqrt()
        residuals = torch.where(reconstruction < inputs, -size, size)
        return Residuals(residuals, reconstruction.expand(-1, 3, -1, -1).clamp(0, 1))

    def _reconstruction_and_error(self, inputs: Tensor) -> Tensor:
        reconstruction = self.autoencoder(inputs)
        return torch.cat([reconstruction, self.error(reconstruction, inputs)], 1)

    def _apply_function(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Apply a function to the whole input, or to its tiles, whose results are averaged."""
        if self.config.tile is None:
            return function(inputs)
        return mean_over_tiles(function, inputs, self.config.tile, self.config.stride)
