"""Decode TIFF files that Pillow cannot read, or misreads, with tifffile; it is optional (`metalad[tiff]`)."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from metalad.data.sixteen_bits import Decoded
from metalad.runtime.errors import ImageError

REMEDY = "install tifffile (pip install metalad[tiff]), or convert it to PNG"
_PLANAR, _BITS, _PHOTOMETRIC = 284, 258, 262
_WHITE_IS_ZERO, _RGB = 0, 2
_REDUCED_OR_MASK = 1 | 4
_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))


class UnsupportedTiffError(ImageError):
    """A kind of TIFF file that Pillow cannot decode."""


def is_misread(image: object) -> bool:
    """Return whether Pillow misreads an opened file: it mixes up the bytes of separate planes of 16 bits."""
    if not isinstance(image, TiffImageFile):
        return False
    tags = image.tag_v2
    return tags.get(_PLANAR, 1) == 2 and len(tags.get(_BITS, (1,))) > 1 and max(tags.get(_BITS, (1,))) > 8


def is_white_zero(image: object) -> bool:
    """Return whether gray values are stored inverted and Pillow does not invert them: with 16 bits."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def stored_size(path: Path, file: BinaryIO, page: int = 1) -> tuple[int, int, int]:
    """Return width, height and orientation of a page, read by tifffile; raises as `decode_tiff`."""
    _, directory = _directory(path, file, page)
    return int(directory.imagewidth), int(directory.imagelength), _orientation(directory)


def decode_tiff(path: Path, file: BinaryIO, page: int = 1) -> tuple[Decoded, int]:
    """Decode a page with tifffile; return it as stored, and its orientation.

    Raises:
        ImageError: tifffile is not installed, lacks a codec, or the pixels are not gray or RGB with 8 or 16 bits.
    """
    pages, directory = _directory(path, file, page)
    try:
        values = np.asarray(directory.asarray())
    except Exception as error:
        if "imagecodecs" in str(error):
            raise ImageError(path, f"its compression needs imagecodecs ({error})", REMEDY) from error
        raise
    if directory.axes.startswith("S"):
        values = np.moveaxis(values, 0, -1)
    photometric = int(directory.photometric)
    channels = values.shape[2] if values.ndim == 3 else 1
    is_known = channels in (1, 2) if photometric in (0, 1) else photometric == _RGB and channels in (3, 4)
    if values.dtype not in _TYPES or values.ndim not in (2, 3) or not is_known:
        what = f"{channels} channels of {values.dtype}, photometric interpretation {photometric}"
        raise ImageError(path, f"a TIFF with {what}", "convert it to 8- or 16-bit gray or RGB")
    bits = int(directory.bitspersample)
    white_is_zero = photometric == _WHITE_IS_ZERO
    return _decoded(values, channels, bits, pages, white_is_zero, _is_premultiplied(directory)), _orientation(directory)


def _decoded(
    values: np.ndarray, channels: int, bits: int, pages: int, white_is_zero: bool, premultiplied: bool
) -> Decoded:
    if channels == 1:
        gray = values.reshape(values.shape[:2])
        if gray.dtype == np.uint8:
            return Decoded(Image.fromarray(255 - gray if white_is_zero else gray), pages=pages)
        return Decoded(Image.fromarray(np.ascontiguousarray(gray)), None, bits, pages, white_is_zero)
    if white_is_zero:  # with alpha
        values = values.copy()
        values[..., 0] = np.iinfo(values.dtype).max - values[..., 0]
    mode = {2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    parts = [values] if values.dtype == np.uint8 else [values >> 8, values & 255]
    high, *low = (_image(part.astype(np.uint8), mode) for part in parts)
    return Decoded(high, low[0] if low else None, bits, pages, False, premultiplied)


def _image(values: np.ndarray, mode: str) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(values, -1, 0)])


def _directory(path: Path, file: BinaryIO, page: int) -> tuple[int, Any]:
    """Return the number of pages, and tifffile's page of a number from 1."""
    if importlib.util.find_spec("tifffile") is None:
        raise UnsupportedTiffError(path, "a kind of TIFF that Pillow cannot read", REMEDY)
    tifffile = importlib.import_module("tifffile")
    file.seek(0)
    directories = [directory.aspage() for directory in tifffile.TiffFile(file).pages]
    pages = [directory for directory in directories if not directory.subfiletype & _REDUCED_OR_MASK]
    if page > len(pages):
        raise ImageError(path, f"there is no page {page}: the file has {len(pages)}")
    return len(pages), pages[page - 1].aspage()


def _orientation(directory: Any) -> int:
    tag = directory.tags.get(274)
    return int(tag.value) if tag is not None and isinstance(tag.value, int) else 1


def _is_premultiplied(directory: Any) -> bool:
    return any(int(sample) == 1 for sample in directory.extrasamples)
