"""Decode image files with Pillow, with a check of the size before decoding and one error type for all failures.

The protection of Pillow against decompression bombs is a process-wide setting that warns where an error is needed.
Therefore the decoders are opened directly, and the size in the header is checked before decoding.
"""

import contextlib
import io
import math
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.MpoImagePlugin import MpoImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from metalad.data.formats import Format, format_of, readable_names
from metalad.data.pages import pages_of, split_page
from metalad.data.sixteen_bits import (
    Decoded,
    as_four_bytes,
    declared_bits,
    is_16_bit,
    is_gray_16,
    keep_colors,
    loses_values,
    low_bytes,
    split_gray_alpha,
)
from metalad.data.tiff import REMEDY, UnsupportedTiffError, decode_tiff, is_misread, is_white_zero, stored_size
from metalad.data.video import is_video, read_frame
from metalad.runtime.errors import ConfigError, ImageError
from metalad.runtime.files import special_kind

MIN_SIDE = 8
"""Minimum height and width of an image, in pixels."""
LIMIT_VARIABLE = "METALAD_MAX_MEGAPIXELS"
"""Environment variable with the maximum number of pixels of an image, in millions."""
_DEFAULT_MEGAPIXELS = 150.0


def max_pixels(text: str | None) -> int:
    """Return the maximum number of pixels of an image from the text of the environment variable.

    Empty or None is the default.

    Raises:
        ConfigError: the text is not a positive number.
    """
    try:
        megapixels = float(text) if text else _DEFAULT_MEGAPIXELS
    except ValueError:
        megapixels = math.nan
    if not 0 < megapixels < math.inf:
        raise ConfigError(
            f"{LIMIT_VARIABLE} is {text!r}; it must be a positive number of millions of pixels, such as 400"
        )
    return round(megapixels * 1e6)


MAX_PIXELS = max_pixels(os.environ.get(LIMIT_VARIABLE))
"""Maximum number of pixels of an image; the environment is read when this module is imported."""
_TOO_MANY = (
    f"more than the limit of {MAX_PIXELS:,} (a decompression bomb?); shrink the image first, "
    f"or set {LIMIT_VARIABLE} to a larger number of millions of pixels"
)
_ORIENTATION = 0x0112
_BIG_ENDIAN_BIG_TIFF = b"MM\x00+"
_PILLOW_LOCK = threading.Lock()
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
    """Decode the first page and rotate it upright, as Pillow does; every failure raises `ImageError`."""
    return decode_file(path).image


class _Content(io.BytesIO):
    """The content of a file in memory, with all attributes of an open file."""

    name = ""
    mode = "rb"


def decode_file(path: Path) -> Decoded:
    """Decode an image file, or the page that a path such as `scan.tif[2]` selects; every failure raises `ImageError`.

    Colors with 16 bits are decoded without loss, see `metalad.data.sixteen_bits`.

    Raises:
        ConfigError: the path selects a frame of a video, and OpenCV is not installed.
    """
    try:
        source, page = split_page(path)
        if page is not None and is_video(source):
            frame = read_frame(path)
            check_size(path, *frame.shape[:2])
            return Decoded(Image.fromarray(frame), None, 8, 1)
        with _open_file(source) as file:
            return _decode(path, file, page)
    except Exception as error:
        raise as_image_error(path, error) from error


def decode_bytes(name: Path, content: bytes) -> Decoded:
    """Decode the content of an image file to the pixels that `decode_file` returns; `name` is used in errors alone."""
    try:
        return _decode(name, _Content(content), None)
    except Exception as error:
        raise as_image_error(name, error) from error


def decode_opened(path: Path, image: Image.Image) -> Decoded:
    """Return a Pillow image as decoded, upright; what Pillow loses is decoded from the file that it was opened from.

    If the image was loaded already, it is used as it is: of colors with 16 bits, the low bytes are lost.
    """
    if isinstance(image, ImageFile) and image.tile and image.tell() == 0 and path.is_file():
        decoded = decode_file(path) if loses_values(image) or is_misread(image) else None
        image.load()  # closes the file, as for other images
        if decoded is not None:
            return decoded
    image.load()
    bits = declared_bits(image) if is_gray_16(image) else 8
    white_is_zero = is_gray_16(image) and is_white_zero(image)
    return _upright(Decoded(image, None, bits, 1, white_is_zero), _orientation(image))


def is_16_bit_file(path: Path) -> bool:
    """Return whether an image file has 16 bits per channel, from its header; every failure raises `ImageError`."""
    try:
        source, _ = split_page(path)
        with _open_file(source) as file:
            try:
                return is_16_bit(_open_header(path, file))
            except UnsupportedTiffError:
                return True
    except Exception as error:
        raise as_image_error(path, error) from error


def count_pages(path: Path) -> int:
    """Return the number of pages or frames of an image file; every failure raises `ImageError`."""
    try:
        with _open_file(path) as file:
            try:
                return len(pages_of(_open_header(path, file), file))
            except UnsupportedTiffError:
                return decode_tiff(path, file)[0].pages
    except Exception as error:
        raise as_image_error(path, error) from error


def header_size(path: Path) -> tuple[int, int]:
    """Return the height and width of the upright image from the header; every failure raises `ImageError`."""
    try:
        source, page = split_page(path)
        with _open_file(source) as file:
            return _header_size(path, file, page)
    except Exception as error:
        raise as_image_error(path, error) from error


def header_size_of_bytes(name: Path, content: bytes) -> tuple[int, int]:
    """Return `header_size` of the content of an image file; `name` is used in errors alone."""
    try:
        return _header_size(name, _Content(content), None)
    except Exception as error:
        raise as_image_error(name, error) from error


def _header_size(path: Path, file: BinaryIO, page: int | None) -> tuple[int, int]:
    try:
        image = _open_header(path, file)
        image = image if page is None else _select_page(path, file, image, page)[0]
        width, height, orientation = _header_orientation(image, file)
    except UnsupportedTiffError:
        width, height, orientation = stored_size(path, file, page or 1)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def upright(image: Image.Image) -> Image.Image:
    """Return the image rotated and mirrored according to its EXIF orientation."""
    return _transposed(image, _orientation(image))


def _transposed(image: Image.Image, orientation: int) -> Image.Image:
    transpose = _UPRIGHT.get(orientation)
    if transpose is None:
        return image
    transposed = image.transpose(transpose)
    transposed.format = image.format  # Pillow does not copy it
    return transposed


def _decode(path: Path, file: BinaryIO, page: int | None) -> Decoded:
    try:
        image, pages = _select_page(path, file, _open_header(path, file), page)
        if is_misread(image):
            raise UnsupportedTiffError(path, "separate color planes with 16 bits, which Pillow misreads")
    except UnsupportedTiffError:
        return _upright(*_decode_tiff(path, file, page or 1))
    if as_four_bytes(image):
        _load(image)
        return _upright(Decoded(*split_gray_alpha(image), 16, pages), _orientation(image))
    bits = declared_bits(image) if is_gray_16(image) else 16 if is_16_bit(image) else 8
    premultiplied = bits == 16 and keep_colors(image)
    _load(image)
    image = _with_stored_colors(path, file, image, page)
    low = None
    if bits == 16:
        second, _ = _select_page(path, file, _open_header(path, file), page)
        keep_colors(second)
        if low_bytes(second):
            _load(second)
            low = second
    white_is_zero = is_gray_16(image) and is_white_zero(image)
    return _upright(Decoded(image, low, bits, pages, white_is_zero, premultiplied), _orientation(image))


def _decode_tiff(path: Path, file: BinaryIO, page: int) -> tuple[Decoded, int]:
    width, height, _ = stored_size(path, file, page)
    check_size(path, height, width)
    return decode_tiff(path, file, page)


def _upright(decoded: Decoded, orientation: int) -> Decoded:
    if decoded.image.mode == "La":  # gray multiplied by its alpha, which Pillow converts to nothing but LA
        decoded = replace(decoded, image=decoded.image.convert("LA"))
    low = None if decoded.low is None else _transposed(decoded.low, orientation)
    return replace(decoded, image=_transposed(decoded.image, orientation), low=low)


def _with_stored_colors(path: Path, file: BinaryIO, image: ImageFile, page: int | None) -> ImageFile:
    """Decode again without division by alpha, which sets colors to 0, if the alpha channel is 0 throughout."""
    if not isinstance(image, TiffImageFile) or image.mode != "RGBA" or image.getchannel("A").getextrema() != (0, 0):
        return image
    again, _ = _select_page(path, file, _open_header(path, file), page)
    keep_colors(again)
    _load(again)
    return again


def _select_page(path: Path, file: BinaryIO, image: ImageFile, page: int | None) -> tuple[ImageFile, int]:
    """Return an opened file at a page, from 1, and its number of pages; page None is the first one."""
    pages = pages_of(image, file)
    number = page or 1
    if number > len(pages):
        raise ImageError(path, f"there is no page {number}: the file has {len(pages)}")
    if number > 1:
        if isinstance(image, JpegImageFile):
            file.seek(0)
            image = MpoImageFile(file)
        image.seek(pages[number - 1])
        check_size(path, image.height, image.width)
    return image, len(pages)


def _open_file(path: Path) -> BinaryIO:
    kind = special_kind(path)
    if kind is not None:
        raise ImageError(path, f"{kind}, not an image file")
    return path.open("rb")


def _load(image: ImageFile) -> None:
    if not isinstance(image, TiffImageFile) or image.width * image.height < (Image.MAX_IMAGE_PIXELS or 0):
        image.load()
        return
    # Pillow warns about a large TIFF again when it is decoded; `_open_header` has already checked the size.
    with _limit_of_pillow_raised(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image.load()


@contextlib.contextmanager
def _limit_of_pillow_raised() -> Iterator[None]:
    """Raise the process-wide limit of Pillow for a while, if the environment variable allows larger images."""
    if MAX_PIXELS <= _DEFAULT_MEGAPIXELS * 1e6:
        with _PILLOW_LOCK:
            yield
        return
    with _PILLOW_LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _open_header(path: Path, file: BinaryIO) -> ImageFile:
    file.seek(0)
    start = file.read(32)
    file.seek(0)
    if not start:
        raise ImageError(path, "the file is empty")
    kind = format_of(start)
    if kind is None:
        raise ImageError(path, f"not a {readable_names()} image")
    if not kind.is_readable:
        needed = kind.package or f"a version of Pillow that reads {kind.name}"
        raise ImageError(path, f"a {kind.name} image; install {needed} to read it")
    if kind.name == "WebP" and MAX_PIXELS > _DEFAULT_MEGAPIXELS * 1e6:  # Pillow checks its size at this point
        with _limit_of_pillow_raised():
            image = kind.open(file)
    else:
        image = _opened(path, kind, file)
    width, height = image.size
    check_size(path, height, width)
    return image


def _opened(path: Path, kind: Format, file: BinaryIO) -> ImageFile:
    try:
        if kind.name == "TIFF" and file.read(4) == _BIG_ENDIAN_BIG_TIFF:
            raise SyntaxError("unknown pixel mode: Pillow does not read the list of its directories")
        file.seek(0)
        return kind.open(file)
    except SyntaxError as error:
        if kind.name == "TIFF" and "pixel mode" in str(error):
            raise UnsupportedTiffError(path, "a kind of TIFF that Pillow cannot read", REMEDY) from error
        raise


def check_size(path: Path, height: int, width: int) -> None:
    """Raise `ImageError` if an image is smaller than `MIN_SIDE` or larger than `MAX_PIXELS`."""
    if min(width, height) < MIN_SIDE:
        raise ImageError(path, f"{size_text(height, width)} pixels; each side needs at least {MIN_SIDE}")
    if width * height > MAX_PIXELS:
        raise ImageError(path, f"{size_text(height, width)} pixels are {_TOO_MANY}")


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
    if isinstance(error, ImageError | ConfigError | MemoryError):
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
