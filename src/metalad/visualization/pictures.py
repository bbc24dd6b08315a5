"""The pictures of one image, and how they get into a page: small, and inside it."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# The pictures of one image may differ in size: the mask has the original's, the map the model's.
Picture = UInt8[np.ndarray, "_ _ 3"] | UInt8[np.ndarray, "_ _"]

THUMBNAIL_SIDE = 256
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Pictures:
    """What a report shows of one image: RGB or grey arrays, the map already coloured; None where absent."""

    image: Picture
    anomaly_map: Picture
    reconstruction: Picture | None = None
    ground_truth: Picture | None = None


@dataclass(frozen=True)
class Shown:
    """One picture in the page: its address, and its size in pixels so that the layout never jumps."""

    uri: str
    width: int
    height: int


def thumbnail(picture: Picture, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """Shrink a picture so that neither side exceeds `side` pixels; a smaller one is kept as it is."""
    small = Image.fromarray(np.ascontiguousarray(picture))
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def embed(picture: Picture | None) -> Shown | None:
    """Make a picture small and put it into an address; None stays None."""
    if picture is None:
        return None
    small = thumbnail(picture)
    return Shown(data_uri(small), small.width, small.height)


def data_uri(picture: Image.Image) -> str:
    """A `data:` address holding the picture as PNG or JPEG, the smaller: masks stay exact, photos light."""
    files = {"png": _encode(picture, "PNG", optimize=False)}
    files["jpeg"] = _encode(picture, "JPEG", quality=JPEG_QUALITY)
    kind = min(files, key=lambda name: len(files[name]))
    return f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode('ascii')}"


def _encode(picture: Image.Image, kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
