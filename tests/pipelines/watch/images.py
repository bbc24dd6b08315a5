"""Images that the model of the tests finds good or anomalous."""

import io
import itertools
import os
from pathlib import Path

import numpy as np
from PIL import Image

_SEEDS = itertools.count()


def picture(*, good: bool = True) -> bytes:
    """Return the bytes of a new PNG image: dark noise, with a bright square if it is not good."""
    pixels = np.random.default_rng(next(_SEEDS)).integers(0, 100, (32, 24, 3), np.uint8)
    if not good:
        pixels[8:16, 8:16] = 250
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def put(path: Path, *, good: bool = True, content: bytes | None = None) -> Path:
    """Write an image as a program should: under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(picture(good=good) if content is None else content)
    temporary.replace(path)
    return path


def age(path: Path, seconds: float) -> None:
    """Change the time of modification, without changing the content."""
    status = path.stat()
    os.utime(path, (status.st_atime + seconds, status.st_mtime + seconds))
