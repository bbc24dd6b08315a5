"""Image corruptions that are not anomalies: lighting, position, compression, noise and focus, as on a production line.

At the border, the image is extended by reflection. Equal images and random states give equal bytes.
"""

import io
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Rgb = UInt8[np.ndarray, "height width 3"]

LEVELS = np.arange(256, dtype=np.float64)
"""All values of a byte: what depends on the value alone is computed once for each."""
MAX_CHANGE = 0.15
"""Largest change of brightness and of contrast in copies of good images."""
MAX_DEGREES = 3.0
"""Largest angle by which copies of good images are rotated."""


def brightness(image: Rgb, change: float) -> Rgb:
    """Multiply every value by 1 + `change`."""
    changed: Rgb = _bytes(LEVELS * (1.0 + change))[image]
    return changed


def contrast(image: Rgb, change: float) -> Rgb:
    """Multiply the deviation of every value from the image mean by 1 + `change`."""
    mean = image.mean()
    changed: Rgb = _bytes(mean + (LEVELS - mean) * (1.0 + change))[image]
    return changed


def shift(image: Rgb, pixels: int) -> Rgb:
    """Shift the image to the right by a number of pixels, 0 or more."""
    padded = np.pad(image, ((0, 0), (pixels, 0), (0, 0)), mode="symmetric")
    return np.ascontiguousarray(padded[:, : image.shape[1]])


def rotation(image: Rgb, degrees: float) -> Rgb:
    """Rotate the image about its center, counterclockwise, with bilinear interpolation."""
    height, width, _ = image.shape
    # The displacement of a corner, so that only reflected pixels enter the image, plus 1 for interpolation.
    margin = math.ceil(math.hypot(height, width) * math.sin(math.radians(min(abs(degrees), 180.0)) / 2)) + 1
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    rotated = np.asarray(Image.fromarray(padded).rotate(degrees, Image.Resampling.BILINEAR))
    return np.ascontiguousarray(rotated[margin : margin + height, margin : margin + width])


def jpeg(image: Rgb, quality: int) -> Rgb:
    """Encode the image as JPEG (quality 1 to 95, chroma subsampling 4:2:0) and decode it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(buffer, formats=["JPEG"]) as compressed:
        return np.array(compressed.convert("RGB"))


def gaussian_noise(image: Rgb, sigma: float, rng: np.random.Generator) -> Rgb:
    """Add independent Gaussian noise with the standard deviation `sigma`, in gray levels of 255, to every value.

    If the image is gray, the three channels get the same noise, as with a monochrome camera.
    """
    gray = bool((image == image[..., :1]).all())
    return _bytes(image + sigma * rng.standard_normal((*image.shape[:2], 1 if gray else 3)))


def gaussian_blur(image: Rgb, sigma: float) -> Rgb:
    """Blur with a Gaussian filter of the standard deviation `sigma`, in pixels."""
    # Imported here: prediction imports this module, but does without scipy, which takes half a second.
    from scipy import ndimage

    return _bytes(ndimage.gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="reflect"))


def perturbed(image: Rgb, rng: np.random.Generator) -> Rgb:
    """Change lighting and position slightly and randomly, in half of the cases also focus; compress; then add noise.

    Compression is always applied: deep features are most sensitive to it, and the original image is the case without.
    Noise is added to half of the images, after compression, which would remove it: many cameras do not compress.
    """
    image = contrast(brightness(image, rng.uniform(-MAX_CHANGE, MAX_CHANGE)), rng.uniform(-MAX_CHANGE, MAX_CHANGE))
    image = np.ascontiguousarray(np.flip(shift(np.flip(image, 1), int(rng.integers(4))), 1))
    image = rotation(shift(image, int(rng.integers(4))), rng.uniform(-MAX_DEGREES, MAX_DEGREES))
    if rng.random() < 0.5:
        image = gaussian_blur(image, rng.uniform(0.0, 0.8))
    image = jpeg(image, int(rng.integers(60, 96)))
    return gaussian_noise(image, rng.uniform(0.0, 4.0), rng) if rng.random() < 0.5 else image


def turned_in_other_light(image: Rgb, rng: np.random.Generator) -> Rgb:
    """Change brightness and angle slightly and randomly; no compression, no noise, no further blur."""
    return rotation(brightness(image, rng.uniform(-MAX_CHANGE, MAX_CHANGE)), rng.uniform(-MAX_DEGREES, MAX_DEGREES))


def _bytes(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Round to bytes, in place."""
    np.rint(values, out=values)
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


CORRUPTIONS: Mapping[str, Callable[[Rgb, np.random.Generator], Rgb]] = {
    "brightness +10 %": lambda image, _: brightness(image, 0.1),
    "brightness -10 %": lambda image, _: brightness(image, -0.1),
    "contrast +10 %": lambda image, _: contrast(image, 0.1),
    "contrast -10 %": lambda image, _: contrast(image, -0.1),
    "shift by 2 px": lambda image, _: shift(image, 2),
    "rotation by 2 degrees": lambda image, _: rotation(image, 2.0),
    "JPEG quality 70": lambda image, _: jpeg(image, 70),
    "noise of 2 grey levels": lambda image, rng: gaussian_noise(image, 2.0, rng),
    "blur of 0.5 px": lambda image, _: gaussian_blur(image, 0.5),
}
"""The corruptions that `evaluate` applies, by their names in the report."""
