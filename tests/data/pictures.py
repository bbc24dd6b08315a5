"""Pictures and encoded image files for the tests."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, np.dtype[Any]]


# Positions of row 0 and column 0 of the stored pixels in the upright picture (EXIF 2.3, tag 274).
STORED = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def smooth_picture() -> Array:
    y, x = np.mgrid[:24, :40]
    return np.stack([y * 10, x * 6, 255 - y * 5 - x * 3], axis=2).astype(np.uint8)


def as_stored(upright: Array, orientation: int) -> Array:
    row, column = STORED[orientation]
    stored = upright if row in ("top", "bottom") else upright.swapaxes(0, 1)
    stored = stored[::-1] if row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if column in ("bottom", "right") else stored
    return np.ascontiguousarray(stored)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def one_bit_png(width: int, height: int) -> bytes:
    """A PNG with width × height pixels in its header, but data for only one row."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    line = zlib.compress(bytes(1 + (width + 7) // 8))
    chunks = [(b"IHDR", header), (b"IDAT", line), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def encoded(picture: Array, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
