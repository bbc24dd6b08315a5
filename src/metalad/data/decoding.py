"""Decode image files with Pillow, with a check of the size before decoding and one error type for all failures.

The protection of Pillow against decompression bombs is a process-wide setting that warns where an error is needed.
Therefore the five decoders are opened directly, and the size in the header is checked before decoding.
"""

import os
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from metalad.runtime.errors import ImageError

MIN_SIDE = 8
"""Minimum height and width of an image, in pixels."""
MAX_PIXELS = 150_000_000
"""Maximum number of pixels of an image."""
_SIGNATURES: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"BM", BmpImageFile),
    (b"II*\x00", TiffImageFile),
    (b"MM\x00*", TiffImageFile),
    (b"II+\x00", TiffImageFile),
    (b"MM\x00+", TiffImageFile),
)
_TOO_MANY = f"more than the limit of {MAX_PIXELS:,} (a decompression bomb?); shrink the image first"
_ORIENTATION = 0x0112
_WARNINGS_LOCK = threading.Lock()
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(path: Path) -> Image.Image:
    """Decode the first frame and rotate it upright; every failure raises `ImageError`."""
    try:
        with path.open("rb") as file:
            image = _open_header(path, file)
            _load(image)
            return upright(image)
    except Exception as error:
        raise as_image_error(path, error) from error


def header_size(path: Path) -> tuple[int, int]:
    """Return the height and width of the upright image from the header; every failure raises `ImageError`."""
    try:
        with path.open("rb") as file:
            width, height, orientation = _header_orientation(_open_header(path, file), file)
    except Exception as error:
        raise as_image_error(path, error) from error
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def upright(image: Image.Image) -> Image.Image:
    """Return the image rotated and mirrored according to its EXIF orientation."""
    transpose = _UPRIGHT.get(_orientation(image))
    if transpose is None:
        return image
    transposed = image.transpose(transpose)
    transposed.format = image.format  # Pillow does not copy it
    return transposed


def _load(image: ImageFile) -> None:
    if not isinstance(image, TiffImageFile) or image.width * image.height < (Image.MAX_IMAGE_PIXELS or 0):
        image.load()
        return
    # Pillow warns about a large TIFF again when it is decoded; `_open_header` has already checked the size.
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image.load()


def _open_header(path: Path, file: BinaryIO) -> ImageFile:
    start = file.read(16)
    file.seek(0)
    if not start:
        raise ImageError(path, "the file is empty")
    decoder = _find_decoder(start)
    if decoder is None:
        raise ImageError(path, "not a PNG, JPEG, BMP, TIFF or WebP image")
    image = decoder(file)
    width, height = image.size
    check_size(path, height, width)
    return image


def check_size(path: Path, height: int, width: int) -> None:
    """Raise `ImageError` if an image is smaller than `MIN_SIDE` or larger than `MAX_PIXELS`."""
    if min(width, height) < MIN_SIDE:
        raise ImageError(path, f"{size_text(height, width)} pixels; each side needs at least {MIN_SIDE}")
    if width * height > MAX_PIXELS:
        raise ImageError(path, f"{size_text(height, width)} pixels are {_TOO_MANY}")


def _find_decoder(start: bytes) -> type[ImageFile] | None:
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return WebPImageFile
    return next((decoder for signature, decoder in _SIGNATURES if start.startswith(signature)), None)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        return orientation if isinstance(orientation, int) else 1
    except Exception:  # a damaged EXIF block raises various errors, but does not affect the pixels
        return 1


def _header_orientation(image: ImageFile, file: BinaryIO) -> tuple[int, int, int]:
    """Return the stored width and height and the orientation, without decoding the pixels."""
    if isinstance(image, TiffImageFile):  # depending on its version, Pillow reports the upright or the stored size
        tags = image.tag_v2
        return int(tags[256]), int(tags[257]), int(tags.get(274, 1))
    width, height = image.size
    # If a PNG has no EXIF chunk before its pixels, Pillow would decode all pixels to search for a later one.
    if isinstance(image, PngImageFile) and not any("exif" in str(key).lower() for key in image.info):
        position = file.tell()
        has_exif = b"eXIf" in _png_chunks(file)
        file.seek(position)
        return width, height, _orientation(image) if has_exif else 1
    return width, height, _orientation(image)


def _png_chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        yield name
        file.seek(length + 4, os.SEEK_CUR)


def as_image_error(path: Path, error: Exception) -> Exception:
    """Convert any error while opening or decoding a file to an `ImageError`; Pillow raises errors of many types."""
    if isinstance(error, ImageError | MemoryError):
        return error
    if isinstance(error, Image.DecompressionBombError):  # WebP: Pillow checks its header itself
        return ImageError(path, f"the number of its pixels is {_TOO_MANY}")
    if isinstance(error, FileNotFoundError):
        return ImageError(path, "no such file")
    if isinstance(error, IsADirectoryError):
        return ImageError(path, "a folder, not an image file")
    if isinstance(error, PermissionError):
        return ImageError(path, "no permission to read it; change the permissions of the file")
    return ImageError(path, f"damaged or truncated ({str(error) or type(error).__name__}); copy it again")


def size_text(height: int, width: int) -> str:
    """Format a size as height × width."""
    return f"{height:,} × {width:,}"
