"""The convolutional autoencoder of Bergmann et al. (VISAPP 2019; CVPR 2019), which two methods train by other losses.

An image goes through a code of 100 numbers and back. Objects are rebuilt whole; of a texture square tiles are rebuilt,
and what overlapping tiles say of a pixel is averaged.
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
"""Of the leaky ReLU."""
LEAST_HALVINGS = 4


def halvings(image_size: tuple[int, int], least: int) -> int:
    """Return how often a network must halve an image until its shorter side is 8 to 15, or fewer if it is small.

    Raises:
        ConfigError: a side cannot be halved so often.
    """
    count = max(least, int(math.log2(min(image_size) / 8)))
    if any(side % 2**count for side in image_size):
        height, width = image_size
        raise ConfigError(f"the network halves {height}x{width} pixels {count} times; take multiples of {2**count}")
    return count


class Autoencoder(nn.Module):
    """Convolutions down to a code and their mirror image up again; 1.05M parameters for 128 px, 1.08M for 256.

    The layers are those of the 2018 paper's table for 128 pixels. For 256 one more halving of `width` channels stands
    in front, its mirror image at the end, as the CVPR paper has it; other sizes get as many as they need.
    """

    def __init__(self, channels: int, image_size: tuple[int, int], code: int, width: int) -> None:
        super().__init__()
        count = halvings(image_size, LEAST_HALVINGS)
        extra = count - LEAST_HALVINGS
        grid = (image_size[0] >> count, image_size[1] >> count)
        down = [width] * (2 + extra)
        self.encoder = nn.Sequential(
            *_steps([channels, *down], nn.Conv2d, 4),
            *_steps([width, width], nn.Conv2d, 3),
            *_steps([width, 2 * width], nn.Conv2d, 4),
            *_steps([2 * width, 2 * width], nn.Conv2d, 3),
            *_steps([2 * width, 4 * width], nn.Conv2d, 4),
            *_steps([4 * width, 2 * width, width], nn.Conv2d, 3),
            nn.Conv2d(width, code, grid),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(code, width, grid),
            nn.LeakyReLU(SLOPE),
            *_steps([width, 2 * width, 4 * width], nn.Conv2d, 3),
            *_steps([4 * width, 2 * width], nn.ConvTranspose2d, 4),
            *_steps([2 * width, 2 * width], nn.Conv2d, 3),
            *_steps([2 * width, width], nn.ConvTranspose2d, 4),
            *_steps([width, width], nn.Conv2d, 3),
            *_steps(down, nn.ConvTranspose2d, 4),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )
        _start(self)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Rebuild images of the size that the network was made for."""
        # With channels last, convolutions on a CPU are a quarter faster.
        rebuilt: Tensor = self.decoder(self.encoder(images.contiguous(memory_format=torch.channels_last)))
        return rebuilt.float().contiguous()


def _steps(channels: list[int], layer: type[nn.Conv2d] | type[nn.ConvTranspose2d], kernel: int) -> list[nn.Module]:
    """Return layers from each number of channels to the next; kernels of 4 halve or double the image."""
    made: list[nn.Module] = []
    for before, after in pairwise(channels):
        made += [layer(before, after, kernel, 2 if kernel == 4 else 1, 1), nn.LeakyReLU(SLOPE)]
    return made


def _start(network: nn.Module) -> None:
    """Draw weights that keep a signal's size from layer to layer (He et al. 2015, eq. 14).

    With PyTorch's own start, two images of noise come out of these layers 1e-8 apart, and descent first spends
    hundreds of steps at one grey image.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            taps = math.prod(layer.kernel_size)
            if isinstance(layer, nn.ConvTranspose2d):  # of its kernel, an output pixel meets every stride-th tap
                taps = taps // math.prod(layer.stride) if layer.stride[0] > 1 else 1
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / (1 + SLOPE**2) / (taps * layer.in_channels)))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(DetectorConfig):
    """Settings of the methods that train this autoencoder; the defaults are those for objects."""

    image_size: tuple[int, int] = setting(
        (128, 128), "height and width that images are resized to; the papers take 256 for objects"
    )
    tile: int | None = setting(None, "side of the square tiles to rebuild, for textures; none: the whole image")
    stride: int = setting(30, "pixels from one tile to the next")
    code: int = setting(100, "numbers that the image, or the tile, is squeezed into")
    width: int = setting(32, "channels of the first layer")
    degrees: float = setting(0.0, "turn training images by up to so many degrees, either way")
    shift: float = setting(0.0, "move training images by up to this part of their side, either way")
    flip: bool = setting(False, "mirror half of the training images left to right")

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        super().__post_init__()
        if self.tile is not None:
            check_tiles(self.image_size, self.tile, self.stride)
        halvings(self.rebuilt_size, LEAST_HALVINGS)
        if min(self.code, self.width) < 1:
            raise ConfigError("code and width must be at least 1")
        check_augmentation(self.degrees, self.shift)

    @property
    def rebuilt_size(self) -> tuple[int, int]:
        """Height and width of what the network rebuilds at once."""
        return self.image_size if self.tile is None else (self.tile, self.tile)


class AutoencoderDetector(Reconstructor):
    """A method that trains the autoencoder; it says what the network sees, how far it is off, and what to minimise.

    channels: of what the network sees.
    """

    channels: ClassVar[int] = 3
    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.autoencoder = Autoencoder(self.channels, config.rebuilt_size, config.code, config.width)

    def seen(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels height width"]:
        """Return what the network sees of RGB images."""
        return images

    @abstractmethod
    def error(
        self, rebuilt: Float[Tensor, "batch channels height width"], seen: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return how far each pixel is off, at least 0; its sum over channels is the paper's map."""

    @abstractmethod
    def mean_error(
        self, rebuilt: Float[Tensor, "batch channels height width"], seen: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, ""]:
        """Return what training minimises."""

    def plan(self, protocol: Protocol) -> tuple[Training, ...]:
        """Return 200 epochs of 10,000 patches, or a cosine schedule of small batches."""
        if protocol == "paper":
            return (Training(learning_rate=2e-4, batch_size=128, steps=200 * 10_000 // 128, weight_decay=1e-5),)
        return (Training(learning_rate=1e-3, batch_size=8, steps=3600, schedule="cosine"),)

    def loss(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """Return the mean error of images, or of one tile of each; on held-out images, of tiles that cover them."""
        config, seen = self.config, self.seen(images)
        if self.training and (config.degrees or config.shift or config.flip):
            seen = augment(seen, degrees=config.degrees, shift=config.shift, flip=config.flip)
        if config.tile is None:
            return self.mean_error(self.autoencoder(seen), seen)
        if self.training:
            tiles = random_tiles(seen, config.tile)
            return self.mean_error(self.autoencoder(tiles), tiles)
        return self.mean_error(mean_over_tiles(self.autoencoder, seen, config.tile, config.tile), seen)

    def reconstruct(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Rebuild images; where tiles overlap, their mean is taken, and grey stands in all three colours."""
        return self._measured(self.autoencoder, self.seen(images)).expand(-1, 3, -1, -1)

    def residuals(self, images: Float[Tensor, "batch 3 height width"]) -> Residuals:
        """Return the square root of the error of each channel, with the sign of reconstruction minus image.

        Where tiles overlap it is their errors that are averaged, as in the paper: its map is the residual squared.
        """
        seen = self.seen(images)
        both = self._measured(self._rebuilt_and_error, seen)
        rebuilt, error = both[:, : self.channels], both[:, self.channels :]
        residual = torch.copysign(error.sqrt(), rebuilt - seen)
        return Residuals(residual, rebuilt.expand(-1, 3, -1, -1).clamp(0, 1))

    def _rebuilt_and_error(self, seen: Tensor) -> Tensor:
        rebuilt = self.autoencoder(seen)
        return torch.cat([rebuilt, self.error(rebuilt, seen)], 1)

    def _measured(self, measure: Callable[[Tensor], Tensor], seen: Tensor) -> Tensor:
        if self.config.tile is None:
            return measure(seen)
        return mean_over_tiles(measure, seen, self.config.tile, self.config.stride)
