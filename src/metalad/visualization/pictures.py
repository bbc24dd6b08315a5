"""The pictures of one image, and their conversion to thumbnails that are embedded in a page."""

import base64
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

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
    """One picture in the page: its URI, and its size in pixels, which keeps the page layout stable.

    full: the same picture at full size, a file named relative to the page. center: of a crop: its center in the image,
    as fractions of width and height.
    """

    uri: str
    width: int
    height: int
    full: str | None = None
    center: tuple[float, float] | None = None


def thumbnail(picture: Picture, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """Shrink a picture so that neither side exceeds `side` pixels. A smaller picture keeps its size."""
    small = Image.fromarray(np.ascontiguousarray(picture))
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def embed(picture: Picture | None, full: str | None = None) -> EmbeddedPicture | None:
    """Convert a picture to a thumbnail with a data URI; None for None. `full` is the name of a file of full size."""
    if picture is None:
        return None
    small = thumbnail(picture)
    return EmbeddedPicture(data_uri(small), small.width, small.height, full)


def embed_crop(picture: Picture, row: int, column: int, side: int = THUMBNAIL_SIDE) -> EmbeddedPicture | None:
    """Embed the surroundings of a pixel at full resolution, up to `side` pixels wide and high.

    None if the picture is not larger than that: then its thumbnail has full resolution already.
    """
    height, width = picture.shape[:2]
    if max(height, width) <= side:
        return None
    top, left = (min(max(at - side // 2, 0), max(length - side, 0)) for at, length in ((row, height), (column, width)))
    crop = embed(picture[top : top + side, left : left + side])
    return crop and replace(crop, center=((column + 0.5) / width, (row + 0.5) / height))


def data_uri(picture: Image.Image) -> str:
    """Encode a picture as a `data:` URI: with few colors, such as a mask, as PNG, which is lossless; else as JPEG."""
    kind = "jpeg" if picture.getcolors(FEW_COLORS) is None else "png"
    encoded = _encode(picture, "JPEG", quality=JPEG_QUALITY) if kind == "jpeg" else _encode(picture, "PNG")
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}"


def _encode(picture: Image.Image, kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _embedded_from(values: dict[str, Any]) -> EmbeddedPicture:
    return EmbeddedPicture(**{**values, "center": values["center"] and tuple(values["center"])})


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
        return {label: None if each is None else _embedded_from(each) for label, each in values.items()}

    def close(self) -> None:
        """Delete the file."""
        self._file.close()
