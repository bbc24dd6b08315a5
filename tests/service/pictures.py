"""Small test pictures: good ones are noise, anomalous ones have squares."""

import numpy as np


def picture(seed: int, squares: list[tuple[int, int, int, int]] | None = None) -> np.ndarray:
    """Return 60 x 80 pixels of noise with (top, left, side, value) of squares."""
    noise = np.random.default_rng(seed).normal(0, 12, (60, 80, 3))
    image = np.clip(np.linspace(90, 150, 80)[None, :, None] + noise, 0, 255)
    for top, left, side, value in squares or ():
        image[top : top + side, left : left + side] = value
    return image.astype(np.uint8)
