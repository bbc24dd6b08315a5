"""Decode colors with 16 bits without loss; Pillow has no mode for them and keeps their high bytes alone.

The file is decoded twice: as Pillow does, and with the byte order swapped, which gives the low bytes.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt16
from PIL import Image
from PIL.ImageFile import ImageFile, _Tile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

_LITTLE = sys.byteorder == "little"
_SWAPPED = {"L": "B", "B": "L", "N": "B" if _LITTLE else "L"}
_GRAY_ALPHA = "LA;16B"


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image as decoded, upright.

    image: as Pillow decodes it; of colors with 16 bits, the high bytes. low: their low bytes, in the same mode.
    bits: of each value as the file declares: 8, 12 or 16. pages: the number of pages or frames of the file.
    white_is_zero: 16-bit gray values are stored inverted. premultiplied: 16-bit colors are multiplied by their alpha.
    """

    image: Image.Image
    low: Image.Image | None = None
    bits: int = 8
    pages: int = 1
    white_is_zero: bool = False
    premultiplied: bool = False

    @property
    def values_16(self) -> UInt16[np.ndarray, "..."] | None:
        """The values as stored: gray [height, width], or colors with or without alpha; None with 8 bits."""
        if self.low is not None:
            high: np.ndarray = np.asarray(self.image).astype(np.uint16)
            values: np.ndarray = (high << 8) | np.asarray(self.low)
            return values
        return np.asarray(self.image).astype(np.uint16) if is_gray_16(self.image) else None


def from_values(values: UInt16[np.ndarray, "..."]) -> Decoded:
    """Return gray values [height, width] or RGB values [height, width, 3] as a decoded image."""
    if values.ndim == 2:
        return Decoded(Image.fromarray(np.ascontiguousarray(values)), bits=16)
    high, low = ((values >> 8).astype(np.uint8), (values & 255).astype(np.uint8))
    return Decoded(Image.fromarray(high), Image.fromarray(low), bits=16)


def is_gray_16(image: Image.Image) -> bool:
    """Return whether an image has gray values with 16 bits."""
    # Pillow before version 11 decodes 16-bit gray PNG to mode I.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def is_16_bit(image: ImageFile) -> bool:
    """Return whether an opened file has 16 bits per channel, not 12."""
    return (is_gray_16(image) and declared_bits(image) == 16) or _is_color_16(image)


def declared_bits(image: Image.Image) -> int:
    """Return the bits of a gray value that an opened file declares; 12-bit TIFF is decoded to 16-bit pixels."""
    return int(image.tag_v2.get(258, (16,))[0]) if isinstance(image, TiffImageFile) else 16


def low_bytes(image: ImageFile) -> bool:
    """Make an opened file, which is not loaded yet, load the low bytes of its colors; return whether it has any."""
    if not _is_color_16(image):
        return False
    image.tile = [tile._replace(args=_with_raw_mode(tile.args, _swapped(_raw_mode(tile)))) for tile in image.tile]
    return True


def keep_colors(image: ImageFile) -> bool:
    """Make an opened file load colors as they are stored, not divided by their alpha; return whether they are divided.

    Otherwise colors with an alpha of 0 would be lost.
    """
    if not any(_raw_mode(tile).startswith("RGBa") for tile in image.tile):
        return False
    image.tile = [
        tile._replace(args=_with_raw_mode(tile.args, _raw_mode(tile).replace("RGBa", "RGBA"))) for tile in image.tile
    ]
    return True


def loses_values(image: ImageFile) -> bool:
    """Return whether Pillow loses values of an opened file: low bytes, or colors with an alpha of 0."""
    return _is_color_16(image) or any(_raw_mode(tile).startswith(("RGBa", _GRAY_ALPHA)) for tile in image.tile)


def split_gray_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return the high and the low bytes of 16-bit gray values with alpha, loaded as four bytes each, as LA images."""
    gray, gray_low, alpha, alpha_low = image.split()
    return Image.merge("LA", (gray, alpha)), Image.merge("LA", (gray_low, alpha_low))


def as_four_bytes(image: ImageFile) -> bool:
    """Make an opened PNG with 16-bit gray values and alpha load its bytes; return whether it is one."""
    if not isinstance(image, PngImageFile) or [_raw_mode(tile) for tile in image.tile] != [_GRAY_ALPHA]:
        return False
    image.tile = [tile._replace(args=_with_raw_mode(tile.args, "RGBA")) for tile in image.tile]
    image._mode = "RGBA"
    return True


def _is_color_16(image: ImageFile) -> bool:
    return (
        isinstance(image, PngImageFile | TiffImageFile)
        and image.mode in ("RGB", "RGBA")
        and bool(image.tile)
        and all(";16" in _raw_mode(tile) for tile in image.tile)
    )


def _raw_mode(tile: _Tile) -> str:
    args: Any = tile.args
    raw_mode = args if isinstance(args, str) else args[0] if args else ""
    return str(raw_mode)


def _with_raw_mode(args: Any, raw_mode: str) -> Any:
    return raw_mode if isinstance(args, str) else (raw_mode, *args[1:])


def _swapped(raw_mode: str) -> str:
    return raw_mode[:-1] + _SWAPPED[raw_mode[-1]]
