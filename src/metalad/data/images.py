"""Read images and masks as arrays, resize and write them, and list the image files in a folder."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt16
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from metalad.data.decoding import as_image_error, check_size, decode, header_size, size_text, upright
from metalad.runtime.errors import DataError, ImageError
from metalad.runtime.files import replacing

RESULTS, MAPS, OVERLAYS = "predictions.jsonl", "maps", "overlays"
"""Output of `predict`: a file of results, and two folders of pictures."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image as RGB bytes, rotated upright according to its EXIF orientation.

    Transparent pixels are blended with white. 16-bit gray values are scaled by their full range (65535 becomes 255),
    not clipped; of 16-bit color values the high byte is used. Color profiles are not applied. Of several frames or
    pages the first is read.

    Raises:
        ImageError: not a PNG, JPEG, BMP, TIFF or WebP image; damaged, truncated, empty or unreadable; smaller than
            `MIN_SIDE`, larger than `MAX_PIXELS`, or with pixels of an unknown range (32-bit).
    """
    return _to_rgb(path, decode(path))


def rgb_of(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Return a Pillow image as RGB bytes; for an image opened from a file, the bytes are those of `read_image`.

    Raises:
        ImageError: as `read_image`.
    """
    path = Path(str(getattr(image, "filename", "") or "the image"))
    try:
        check_size(path, image.height, image.width)
        image.load()
        image = upright(image)
    except Exception as error:
        raise as_image_error(path, error) from error
    return _to_rgb(path, image)


def _to_rgb(path: Path, image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if _is_16_bit(image):
        gray = _scale_to_bytes(image)
        return np.repeat(gray[:, :, None], 3, axis=2)
    _require_known_range(path, image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.array(image.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Return the height and width of the upright image from its header, without decoding the pixels.

    Raises:
        ImageError: as `read_image`, except that damaged pixel data is not detected.
    """
    return header_size(path)


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Bool[np.ndarray, "height width"]:
    """Read a ground-truth mask: true (anomalous) for pixels that are neither black nor transparent.

    A JPEG mask is thresholded at half brightness instead, because compression adds noise to black areas.

    Args:
        path: an image file of a format that `read_image` supports, or a folder of masks, whose union is returned.
        size: expected height and width; None accepts any.

    Raises:
        ImageError: as `read_image`.
        DataError: the size is not `size`, or a folder contains no masks or masks of different sizes.
    """
    if path.is_dir():
        return _read_masks(path, size)
    image = decode(path)
    actual = (image.height, image.width)
    if size is not None and actual != tuple(size):
        raise DataError(
            f"mask {path} is {size_text(*actual)} (height × width), but its image is {size_text(*size)}; "
            "make them the same size"
        )
    if _is_16_bit(image):
        return np.asarray(image) > 0
    _require_known_range(path, image)
    threshold = 127 if image.format == "JPEG" else 0
    rgba = np.asarray(image.convert("RGBA"))
    return (rgba[:, :, :3] > threshold).any(axis=2) & (rgba[:, :, 3] > 0)


def _read_masks(folder: Path, size: tuple[int, int] | None) -> Bool[np.ndarray, "height width"]:
    masks = [read_mask(path, size) for path in find_images(folder)]
    if len({mask.shape for mask in masks}) != 1:
        raise DataError(f"the folder {folder} must contain masks of equal size; it has {len(masks)}; copy it again")
    return np.array(np.logical_or.reduce(masks))


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


def write_png16(path: Path, grey: UInt16[np.ndarray, "height width"]) -> None:
    """Write a 16-bit gray PNG, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    with replacing(path) as temporary:
        Image.fromarray(grey).save(temporary, format="PNG")


def find_images(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders as a list; see `iter_images`.

    Raises:
        DataError: the folder does not exist, is a file, or cannot be read.
    """
    return list(iter_images(folder))


def iter_images(folder: Path) -> Iterator[Path]:
    """Yield the image files (by suffix) in a folder and its subfolders, sorted by POSIX path.

    Hidden files and folders and the output pictures of `predict` are ignored. Symbolic links are followed, but each
    folder is visited only once.

    Raises:
        DataError: the folder does not exist or is a file (raised by the call), or a folder cannot be read (raised
            during iteration).
    """
    require_folder(folder)
    return _walk(folder)


def require_folder(folder: Path) -> None:
    """Raise if a path is not a folder.

    Raises:
        DataError: the folder does not exist, is a file, or cannot be accessed.
    """
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"no folder {folder}; check the path") from error
    except OSError as error:
        raise _folder_refusal(folder, error) from error
    if not is_folder:
        raise DataError(f"{folder} is a file, but a folder of images is needed")


def _walk(folder: Path) -> Iterator[Path]:
    pending = [(folder, True)]
    visited: set[tuple[int, int]] = set()
    while pending:
        path, is_folder = pending.pop()
        if not is_folder:
            yield path
            continue
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            pending.extend(reversed(_entries(path)))
        except OSError as error:
            raise _folder_refusal(path, error) from error


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    found: list[tuple[str, Path, bool]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            try:
                if entry.is_dir():
                    # With the slash, the order of names equals that of full paths: "a.png" comes before "a/b.png".
                    found.append((entry.name + "/", path, True))
                elif path.suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
                    found.append((entry.name, path, False))
            except OSError:  # a link to itself
                continue
    # The pictures that `predict` wrote are not input images.
    outputs = {f"{MAPS}/", f"{OVERLAYS}/"} if (folder / RESULTS).exists() else set()
    return [(path, is_folder) for name, path, is_folder in sorted(found) if name not in outputs]


def _is_16_bit(image: Image.Image) -> bool:
    # Pillow before version 11 decodes 16-bit gray PNG to mode I.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _scale_to_bytes(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    bits = 16
    if isinstance(image, TiffImageFile):  # 12-bit TIFF is decoded to 16-bit pixels
        bits = int(image.tag_v2.get(258, (16,))[0])
    maximum = 2**bits - 1
    levels = (np.arange(2**16, dtype=np.uint32) * 255 + maximum // 2) // maximum
    table = np.minimum(levels, 255).astype(np.uint8)
    return np.take(table, np.asarray(image))


def _require_known_range(path: Path, image: Image.Image) -> None:
    if image.mode in ("I", "F", "LAB", "HSV"):
        raise ImageError(path, f"pixels of mode {image.mode}; convert the image to 8- or 16-bit gray or RGB")


def _folder_refusal(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot read the folder {folder}: {error.strerror or error}; check its permissions and links")


def _pillow_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    return width, height
