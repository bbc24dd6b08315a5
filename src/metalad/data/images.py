"""Read images and masks as arrays, resize and write them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt16
from PIL import Image

from metalad.data.decoding import (
    as_image_error,
    check_size,
    decode_bytes,
    decode_file,
    decode_opened,
    header_size,
    size_text,
)
from metalad.data.derived import is_written_content, is_written_picture
from metalad.data.formats import IMAGE_SUFFIXES
from metalad.data.masks import anomalous_pixels, has_gray_edges
from metalad.data.pages import split_page
from metalad.data.png16 import png16_parts
from metalad.data.reading import ALPHA_NOTE, FRAMES_NOTE, WRITTEN_NOTE, Reading, range_note
from metalad.data.sixteen_bits import Decoded, is_gray_16
from metalad.data.walking import MAPS, OVERLAYS, RESULTS, find_images, iter_images, require_folder
from metalad.runtime.errors import DataError, ImageError
from metalad.runtime.files import replacing

__all__ = [
    "IMAGE_SUFFIXES",
    "MAPS",
    "OVERLAYS",
    "RESULTS",
    "Mask",
    "decoded_rgb",
    "find_images",
    "image_size",
    "inspect_mask",
    "iter_images",
    "opened_image",
    "read_image",
    "read_image_bytes",
    "read_mask",
    "require_folder",
    "resize_image",
    "resize_map",
    "resize_mask",
    "rgb_of",
    "write_image",
    "write_png16",
]

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}


def read_image(path: Path, reading: Reading | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image as RGB bytes, rotated upright according to its EXIF orientation.

    Transparent pixels are blended with white; an alpha channel that is 0 throughout is ignored, because some cameras
    write 0 to a fourth byte that has no meaning. 16-bit values are scaled so that the white level becomes 255. Color
    profiles are not applied. Of several pages or frames the first is read, or the one that a path such as `scan.tif[2]`
    selects, from 1.

    Args:
        path: the file.
        reading: gives the white level and collects notes; by default the white level is 65535.

    Raises:
        ImageError: not an image in one of `metalad.data.formats`; damaged, truncated, empty or unreadable; smaller than
            `MIN_SIDE`, larger than `MAX_PIXELS`, or with pixels of an unknown range (32-bit); with several pages, if
            `reading` is strict.
    """
    source, page = split_page(path)
    decoded = decode_file(path)
    is_written = is_written_picture(source)
    return _first_page_rgb(path, decoded, reading or Reading(), is_page=page is not None, is_written=is_written)


def read_image_bytes(name: str, content: bytes, reading: Reading | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Return the content of an image file as RGB bytes: those of `read_image` for a file with this content.

    No file is read. `name` names the image in notes and errors alone; it does not select a page.

    Raises:
        ImageError: as `read_image`.
    """
    path = Path(name)
    decoded = decode_bytes(path, content)
    is_written = is_written_content(content)
    return _first_page_rgb(path, decoded, reading or Reading(), is_page=False, is_written=is_written)


def _first_page_rgb(
    path: Path, decoded: Decoded, reading: Reading, *, is_page: bool, is_written: bool
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a decoded image as RGB bytes, with notes; `path` names it in them, and is not opened."""
    if decoded.pages > 1 and not is_page:
        if reading.strict:
            raise ImageError(path, f"{decoded.pages} pages or frames, but one is read", "save them as separate files")
        reading.notes.add(path, [FRAMES_NOTE])
    if is_written:
        reading.notes.add(path, [WRITTEN_NOTE])
    return decoded_rgb(path, decoded, reading)


def rgb_of(image: Image.Image, reading: Reading | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Return a Pillow image as RGB bytes; for an image opened from a file, the bytes are those of `read_image`.

    Raises:
        ImageError: as `read_image`.
    """
    return decoded_rgb(_name_of(image), opened_image(image), reading or Reading())


def opened_image(image: Image.Image) -> Decoded:
    """Return a Pillow image as decoded; raises as `rgb_of`."""
    path = _name_of(image)
    try:
        check_size(path, image.height, image.width)
        return decode_opened(path, image)
    except Exception as error:
        raise as_image_error(path, error) from error


def _name_of(image: Image.Image) -> Path:
    return Path(str(getattr(image, "filename", "") or "the image"))


def decoded_rgb(path: Path, decoded: Decoded, reading: Reading) -> UInt8[np.ndarray, "height width 3"]:
    """Return a decoded image as RGB bytes; raises as `read_image`. `path` names it in notes."""
    values = decoded.values_16
    if values is not None:
        return _scale_to_bytes(path, decoded, values, reading)
    image = decoded.image
    _require_known_range(path, image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (0, 0):
            reading.notes.add(path, [ALPHA_NOTE])
        else:
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.array(image.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Return the height and width of the upright image from its header, without decoding the pixels.

    Raises:
        ImageError: as `read_image`, except that damaged pixel data is not detected.
    """
    return header_size(path)


@dataclass(frozen=True, eq=False)
class Mask:
    """A ground-truth mask: true for anomalous pixels.

    is_cut: the file has many gray levels, and was cut at half brightness.
    """

    pixels: Bool[np.ndarray, "height width"]
    is_cut: bool


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Bool[np.ndarray, "height width"]:
    """Read a ground-truth mask: true (anomalous) for pixels that are neither black nor transparent.

    A mask with many gray levels and a JPEG mask are cut at half brightness instead, because blurred edges and
    compression add dark values to black areas, see `metalad.data.masks`.

    Args:
        path: an image file of a format that `read_image` supports, or a folder of masks, whose union is returned.
        size: expected height and width; None accepts any.

    Raises:
        ImageError: as `read_image`.
        DataError: the size is not `size`, or a folder contains no masks or masks of different sizes.
    """
    return inspect_mask(path, size).pixels


def inspect_mask(path: Path, size: tuple[int, int] | None = None) -> Mask:
    """Read a ground-truth mask as `read_mask` does, and return also whether it was cut at half brightness."""
    if path.is_dir():
        return _read_masks(path, size)
    decoded = decode_file(path)
    image = decoded.image
    actual = (image.height, image.width)
    if size is not None and actual != tuple(size):
        raise DataError(
            f"mask {path} is {size_text(*actual)} (height × width), but its image is {size_text(*size)}; "
            "make them the same size"
        )
    if is_gray_16(image):
        values = np.asarray(image).astype(np.uint16)
        values = 65535 - values if decoded.white_is_zero else values
        is_cut = has_gray_edges(values)
        return Mask(anomalous_pixels(values, is_cut), is_cut)
    _require_known_range(path, image)
    rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[:, :, 3]
    brightest = rgba[:, :, :3].max(axis=2) * ((alpha > 0) if alpha.any() else True)
    is_cut = has_gray_edges(brightest)
    return Mask(anomalous_pixels(brightest, is_cut or image.format == "JPEG"), is_cut)


def _read_masks(folder: Path, size: tuple[int, int] | None) -> Mask:
    masks = [inspect_mask(path, size) for path in find_images(folder)]
    if len({mask.pixels.shape for mask in masks}) != 1:
        raise DataError(f"the folder {folder} must contain masks of equal size; it has {len(masks)}; copy it again")
    union = np.array(np.logical_or.reduce([mask.pixels for mask in masks]))
    return Mask(union, any(mask.is_cut for mask in masks))


def resize_image(
    image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Resize to `size` (height, width) bilinearly, with antialiasing when shrinking."""
    if image.shape[:2] == tuple(size):
        return image.copy()
    return np.array(Image.fromarray(image).resize(_pillow_size(size), Image.Resampling.BILINEAR))


def resize_map(
    anomaly_map: Float32[np.ndarray, "height width"], size: tuple[int, int]
) -> Float32[np.ndarray, "new_height new_width"]:
    """Resize a map of real values to `size` (height, width) bilinearly, with antialiasing when shrinking.

    Pixel centers are at half-integer coordinates, as in torch's `interpolate` with `align_corners=False`.
    """
    if anomaly_map.shape == tuple(size):
        return anomaly_map.copy()
    return np.array(Image.fromarray(anomaly_map).resize(_pillow_size(size), Image.Resampling.BILINEAR))


def resize_mask(
    mask: Bool[np.ndarray, "height width"], size: tuple[int, int]
) -> Bool[np.ndarray, "new_height new_width"]:
    """Resize a mask to `size` (height, width); each pixel has the value at its center (nearest neighbor)."""
    # Integer arithmetic, because rounding errors matter for a center between two pixels.
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(mask.shape, size, strict=True))
    return mask[np.ix_(rows, columns)]


def write_image(path: Path, image: UInt8[np.ndarray, "height width 3"] | UInt8[np.ndarray, "height width"]) -> None:
    """Write RGB or gray bytes in the format of the path's suffix, atomically; lossless except for JPEG and WebP.

    Raises:
        DataError: the suffix is not that of a supported format.
        RunError: the file cannot be written.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"cannot write {path}: its suffix must be one of {' '.join(sorted(_FORMATS))}")
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format=kind, **({"quality": 95} if kind == "JPEG" else {}))


def write_png16(path: Path, gray: UInt16[np.ndarray, "height width"], comment: str | None = None) -> None:
    """Write a 16-bit gray PNG, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(png16_parts(gray, comment))


def _scale_to_bytes(
    path: Path, decoded: Decoded, values: UInt16[np.ndarray, "..."], reading: Reading
) -> UInt8[np.ndarray, "height width 3"]:
    """Scale values with 16 bits, or with fewer if the file declares so, to RGB bytes."""
    alpha = None
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values, alpha = values[:, :, :-1], values[:, :, -1:]
        if not alpha.any():
            reading.notes.add(path, [ALPHA_NOTE])
            alpha = None
    colors = scale_16_bits(values, path, reading, decoded.bits)
    if decoded.white_is_zero:
        colors = 255 - colors
    if alpha is not None:
        opacity = alpha.astype(np.float32) / 65535
        blended = (colors if decoded.premultiplied else colors * opacity) + 255 * (1 - opacity)
        colors = np.rint(blended).clip(0, 255).astype(np.uint8)
    if colors.ndim == 2:
        colors = colors[:, :, None]
    return np.ascontiguousarray(np.broadcast_to(colors, (*colors.shape[:2], 3)))


def scale_16_bits(
    values: UInt16[np.ndarray, "..."], path: Path, reading: Reading, bits: int = 16
) -> UInt8[np.ndarray, "..."]:
    """Scale values with 16 bits to bytes: the white level becomes 255, higher values are clipped, and noted.

    bits: declared by the file; if they are fewer than 16, their maximum is the white level.
    """
    maximum = reading.white_level
    if bits < 16:
        maximum = 2**bits - 1
    elif note := range_note(int(values.max()), maximum):
        reading.notes.add(path, [note])
    levels = (np.arange(2**16, dtype=np.uint32) * 255 + maximum // 2) // maximum
    table = np.minimum(levels, 255).astype(np.uint8)
    return np.take(table, values)


def _require_known_range(path: Path, image: Image.Image) -> None:
    if image.mode in ("I", "F", "LAB", "HSV"):
        raise ImageError(path, f"pixels of mode {image.mode}; convert the image to 8- or 16-bit gray or RGB")


def _pillow_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    return width, height
