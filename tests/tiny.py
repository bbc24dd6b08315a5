"""Small images of real things, and a small MeTAL, for tests of whole runs."""

from pathlib import Path

import numpy as np

import metalad
from metalad.images import find_images, read_image, resize_image, write_image
from metalad.methods.metal import MetalConfig

CONFIG = MetalConfig(image_size=(32, 32), patch_size=8, width=16, hidden_width=32, smoothing_sigma=1.0)
COOKIES = Path(metalad.__file__).parent / "demo_data" / "cookie" / "train" / "good"


def cookies(count: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """The first good images of the shipped set, made small."""
    return np.stack([resize_image(read_image(path), size) for path in find_images(COOKIES)[:count]])


def put_cookies(folder: Path, count: int) -> Path:
    """Write small good images into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(cookies(count, (32, 40))):
        write_image(folder / f"{index:03}.png", image)
    return folder
