"""The image formats that are read: their file suffixes, their first bytes, and their decoders.

AVIF and JPEG 2000 are read if Pillow was built with them, HEIC and JPEG XL if a plug-in for Pillow is installed. The
decoders are opened directly, because `Image.open` checks the size in its own way, see `metalad.data.decoding`.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

from PIL.ImageFile import ImageFile


@dataclass(frozen=True)
class Format:
    """An image format.

    module, decoder: the class that decodes it. starts: the first bytes of a file. brands: of an ISO base media file,
    which has "ftyp" and a brand after four bytes. package: the plug-in that reads the format, if Pillow does not.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    decoder: str
    starts: tuple[bytes, ...] = ()
    brands: tuple[bytes, ...] = ()
    package: str | None = None

    @property
    def is_readable(self) -> bool:
        """Whether this installation can decode the format."""
        if self.package is not None:
            return importlib.util.find_spec(self.module.partition(".")[0]) is not None
        return self.name not in _OPTIONAL or _has_codec(_OPTIONAL[self.name])

    def open(self, file: BinaryIO) -> ImageFile:
        """Read the header of a file."""
        decoder: Any = getattr(importlib.import_module(self.module), self.decoder)
        image: ImageFile = decoder(file)
        return image

    def fits(self, start: bytes) -> bool:
        """Return whether the first 32 bytes of a file are those of this format."""
        if self.name == "WebP":
            return start[:4] == b"RIFF" and start[8:12] == b"WEBP"
        if start[4:8] != b"ftyp":
            return start.startswith(self.starts)
        # An AVIF file may have the general brand first, and its own among the compatible ones.
        is_avif = start[8:12] in (b"avif", b"avis") or (start[8:12] in (b"mif1", b"msf1") and b"avif" in start[16:])
        return is_avif if self.name == "AVIF" else not is_avif and start[8:12] in self.brands


_OPTIONAL = {"AVIF": "avif", "JPEG 2000": "jpg_2000"}
"""Formats that Pillow can be built without, and its names of them."""

FORMATS = (
    Format("PNG", (".png",), "PIL.PngImagePlugin", "PngImageFile", (b"\x89PNG\r\n\x1a\n",)),
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), "PIL.JpegImagePlugin", "JpegImageFile", (b"\xff\xd8\xff",)),
    Format("BMP", (".bmp",), "PIL.BmpImagePlugin", "BmpImageFile", (b"BM",)),
    Format(
        "TIFF",
        (".tif", ".tiff"),
        "PIL.TiffImagePlugin",
        "TiffImageFile",
        (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
    ),
    Format("WebP", (".webp",), "PIL.WebPImagePlugin", "WebPImageFile"),
    Format("AVIF", (".avif",), "PIL.AvifImagePlugin", "AvifImageFile"),
    Format(
        "JPEG 2000",
        (".jp2", ".j2k", ".j2c", ".jpf", ".jpx"),
        "PIL.Jpeg2KImagePlugin",
        "Jpeg2KImageFile",
        (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n"),
    ),
    Format(
        "HEIC",
        (".heic", ".heif", ".hif"),
        "pillow_heif",
        "HeifImageFile",
        brands=(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        package="pillow-heif",
    ),
    Format(
        "JPEG XL",
        (".jxl",),
        "pillow_jxl.JpegXLImagePlugin",
        "JXLImageFile",
        (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n"),
        package="pillow-jxl-plugin",
    ),
)


@lru_cache
def _has_codec(name: str) -> bool:
    from PIL import features

    # A version of Pillow from before the format warns that it is unknown.
    return name in features.get_supported() if name in {*features.modules, *features.codecs} else False


IMAGE_SUFFIXES = frozenset(suffix for kind in FORMATS if kind.is_readable for suffix in kind.suffixes)
"""Suffixes of the files that are read as images, in lower case."""
_MISSING: Mapping[str, str] = {
    suffix: kind.package or f"Pillow with {kind.name}"
    for kind in FORMATS
    if not kind.is_readable
    for suffix in kind.suffixes
}


def needed_package(suffix: str) -> str | None:
    """Return what must be installed to read files with a suffix, in lower case; None if nothing helps."""
    return _MISSING.get(suffix)


def format_of(start: bytes) -> Format | None:
    """Return the format of a file by its first 32 bytes; None if it is unknown."""
    return next((kind for kind in FORMATS if kind.fits(start)), None)


def readable_names() -> str:
    """Return the names of the formats that this installation reads, as a text."""
    *others, last = (kind.name for kind in FORMATS if kind.is_readable)
    return f"{', '.join(others)} or {last}"
