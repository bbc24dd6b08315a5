"""The good cookie images that ship with the package, resized, for tests that train."""

from pathlib import Path

import numpy as np

from metalad.data.images import find_images, read_image, resize_image, write_image
from tests.tiny import COOKIES


def cookies(count: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Return the first good images, resized to (height, width)."""
    return np.stack([resize_image(read_image(path), size) for path in find_images(COOKIES / "train" / "good")[:count]])


def put_cookies(folder: Path, count: int) -> Path:
    """Write the first good images as PNG files into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(cookies(count, (32, 40)) if count else ()):
        write_image(folder / f"{index:03}.png", image)
    return folder
