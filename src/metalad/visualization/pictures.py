"""The pictures of one image, and their conversion to thumbnails that are embedded in a page."""

import base64
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# The pictures of one image may differ in size: the mask has the size of the original image, the map that of the model.
Picture = UInt8[np.ndarray, "_ _ 3"] | UInt8[np.ndarray, "_ _"]

THUMBNAIL_SIDE = 256
JPEG_QUALITY = 85
FEW_COLORS = 64


@dataclass(frozen=True)
class EmbeddedPicture:
    """One picture in the page: its data URI, and its size in pixels, which keeps the page layout stable."""

    uri: str
    width: int
    height: int


def thumbnail(picture: Picture, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """Shrink a picture so that neither side exceeds `side` pixels. A smaller picture keeps its size."""
    small = Image.fromarray(np.ascontiguousarray(picture))
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def embed(picture: Picture | None) -> EmbeddedPicture | None:
    """Convert a picture to a thumbnail with a data URI; None for None."""
    if picture is None:
        return None
    small = thumbnail(picture)
    return EmbeddedPicture(data_uri(small), small.width, small.height)


def data_uri(picture: Image.Image) -> str:
    """Encode a picture as a `data:` URI: with few colors, such as a mask, as PNG, which is lossless; else as JPEG."""
    kind = "jpeg" if picture.getcolors(FEW_COLORS) is None else "png"
    encoded = _encode(picture, "JPEG", quality=JPEG_QUALITY) if kind == "jpeg" else _encode(picture, "PNG")
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"


def _encode(picture: Image.Image, kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


class PictureStore:
    """Stores the embedded pictures of many images in a temporary file, so that memory holds only their places."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the store)
        self._places: dict[int, tuple[int, int]] = {}

    def write(self, index: int, pictures: Mapping[str, EmbeddedPicture | None]) -> None:
        """Store the pictures of the image `index`, by their labels."""
        values = {label: None if picture is None else vars(picture) for label, picture in pictures.items()}
        text = json.dumps(values).encode()
        start = self._file.seek(0, io.SEEK_END)
        self._file.write(text)
        self._places[index] = (start, len(text))

    def read(self, index: int) -> dict[str, EmbeddedPicture | None]:
        """Return the pictures of the image `index`."""
        start, length = self._places[index]
        self._file.seek(start)
        values = json.loads(self._file.read(length))
        return {label: None if picture is None else EmbeddedPicture(**picture) for label, picture in values.items()}

    def close(self) -> None:
        """Delete the file."""
        self._file.close()
