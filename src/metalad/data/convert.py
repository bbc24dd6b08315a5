"""Convert what a Python caller gives (array, Pillow image, tensor) to RGB bytes; whatever is ambiguous is an error."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.ImageFile import ImageFile

from metalad.data.decoding import MAX_PIXELS, MIN_SIDE
from metalad.data.images import decoded_rgb, opened_image, rgb_of
from metalad.data.reading import Reading
from metalad.data.sixteen_bits import Decoded, from_values, is_16_bit, is_gray_16
from metalad.runtime.errors import DataError

CHANNELS = (1, 3, 4)


def is_image(value: object) -> bool:
    """Return whether a value is one image in memory: an array, a Pillow image or a torch tensor."""
    return isinstance(value, np.ndarray | Image.Image) or _is_tensor(value)


def to_rgb(value: Any, name: str = "image", reading: Reading | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Return one image as RGB bytes, in an array of its own.

    Args:
        value: a NumPy array [height, width] or [height, width, 3], a torch tensor [3, height, width] or
            [height, width], each of uint8, of uint16, or of floats in [0, 1]; or a Pillow image, converted as its file
            would be.
        name: of the image in error messages.
        reading: gives the white level of 16-bit values and collects notes, see `metalad.data.images.read_image`.

    Raises:
        DataError: the type, shape or range is another one; nothing is guessed. ImageError: a Pillow image is refused.
    """
    decoded = decoded_16_bits(value, name)
    if decoded is not None:
        return decoded_rgb(Path(name), decoded, reading or Reading())
    if isinstance(value, Image.Image):
        return rgb_of(value, reading)
    if _is_tensor(value):
        return _from_array(_planes_last(_to_numpy(value, name), name), name)
    if isinstance(value, np.ndarray):
        return _from_array(value, name)
    raise DataError(f"{name} is a {type(value).__name__}; give a path, a NumPy array, a Pillow image or a torch tensor")


def decoded_16_bits(value: Any, name: str) -> Decoded | None:
    """Return one image with 16 bits as decoded, in memory of its own; None for a value that is none.

    Raises:
        DataError: the shape of an array is another one than of `to_rgb`.
    """
    if isinstance(value, Image.Image):
        has_16_bits = is_gray_16(value) or (isinstance(value, ImageFile) and is_16_bit(value))
        return opened_image(value) if has_16_bits else None
    if _is_tensor(value):
        array = _planes_last(_to_numpy(value, name), name) if str(value.dtype) == "torch.uint16" else None
    else:
        array = value if isinstance(value, np.ndarray) and value.dtype == np.uint16 else None
    if array is None:
        return None
    _check_shape(array, name)
    return from_values(array.copy())


def _is_tensor(value: object) -> bool:
    # torch is not imported for this: who gives a tensor has imported it.
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(value).__mro__)


def _to_numpy(tensor: Any, name: str) -> np.ndarray:
    try:
        array: np.ndarray = tensor.detach().cpu().numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:  # bfloat16, for example, has no equal in NumPy
        raise DataError(f"{name} is a tensor of {tensor.dtype}; give a dense one of uint8 or float32") from error
    return array


def _planes_last(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 2:
        return array
    if array.ndim == 3 and array.shape[0] == 3:
        return np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] in CHANNELS and array.shape[0] not in CHANNELS:
        raise DataError(
            f"{name} is a tensor {_shape(array)}, channels last; give [3, height, width]: x.permute(2, 0, 1)"
        )
    if array.ndim == 4:
        raise DataError(f"{name} is a tensor {_shape(array)}, a batch; give its images one by one, as list(x)")
    raise DataError(f"{name} is a tensor {_shape(array)}; give [3, height, width] or [height, width]")


def _from_array(array: np.ndarray, name: str) -> UInt8[np.ndarray, "height width 3"]:
    _check_shape(array, name)
    pixels = _to_bytes(array, name)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return np.array(pixels, order="C")


def _check_shape(array: np.ndarray, name: str) -> None:
    if array.ndim == 3 and array.shape[2] == 4:
        raise DataError(f"{name} has four channels {_shape(array)}; give RGB, as x[..., :3] (is it BGR? x[..., 2::-1])")
    if array.ndim == 3 and array.shape[2] == 1:
        raise DataError(f"{name} is {_shape(array)}; give a gray image as [height, width]: x[..., 0]")
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] in CHANNELS:
        raise DataError(
            f"{name} is an array {_shape(array)}, channels first; give [height, width, 3]: np.moveaxis(x, 0, -1)"
        )
    if array.ndim == 4:
        raise DataError(f"{name} is an array {_shape(array)}, a batch; give its images one by one, as list(x)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise DataError(f"{name} is an array {_shape(array)}; give [height, width] or [height, width, 3]")
    height, width = array.shape[:2]
    if min(height, width) < MIN_SIDE or height * width > MAX_PIXELS:
        raise DataError(f"{name} is {height} × {width} pixels; give at least {MIN_SIDE} a side, {MAX_PIXELS:,} in all")


def _to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{name} is of {array.dtype}; give uint8, uint16, or floats in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN, too
        raise DataError(f"{name} is of {array.dtype} with values from {low:g} to {high:g}; floats must be in [0, 1]")
    return np.rint(array.astype(np.float64) * 255).astype(np.uint8)


def _shape(array: np.ndarray) -> str:
    return f"[{', '.join(map(str, array.shape))}]"
