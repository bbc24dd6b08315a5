"""Decode image files of every common kind to RGB bytes, resize them, write them, and find them in a folder.

Pillow decodes. Its own guard against decompression bombs is a process-wide setting that warns where we must
refuse, so the five decoders are opened directly and the size in the header is judged here, before decoding.
"""

import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt16
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from metalad.runtime.errors import DataError, ImageError
from metalad.runtime.files import replacing

MIN_SIDE = 8
MAX_PIXELS = 150_000_000
RESULTS, MAPS, OVERLAYS = "predictions.jsonl", "maps", "overlays"
"""Where `predict` writes its results: a file, and two folders of pictures beside it."""
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
_SIGNATURES: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"BM", BmpImageFile),
    (b"II*\x00", TiffImageFile),
    (b"MM\x00*", TiffImageFile),
    (b"II+\x00", TiffImageFile),
    (b"MM\x00+", TiffImageFile),
)
_TOO_MANY = f"more than the limit of {MAX_PIXELS:,} (a decompression bomb?); shrink the image first"
_ORIENTATION = 0x0112
_WARNINGS = threading.Lock()
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image as RGB bytes, turned upright by its EXIF orientation.

    Transparent parts are laid on white. 16-bit grey is scaled by its full range (65535 becomes 255), never
    clipped; of 16-bit colour the high byte is kept. Colour profiles are not applied. Of several frames or
    pages the first is read.

    Raises:
        ImageError: not a PNG, JPEG, BMP, TIFF or WebP image, damaged, cut short, empty, unreadable, smaller
            than `MIN_SIDE` or larger than `MAX_PIXELS`, or of pixels without a known range (32-bit).
    """
    image = _decode(path)
    if _is_16_bit(image):
        grey = _scale_to_bytes(image)
        return np.repeat(grey[:, :, None], 3, axis=2)
    _require_known_range(path, image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.array(image.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Read the height and width of the upright image from the header, without decoding the pixels.

    Raises:
        ImageError: as `read_image`, but for damage behind the header.
    """
    try:
        with path.open("rb") as file:
            image = _open_header(path, file)
            width, height, orientation = _header_orientation(image, file)
    except Exception as error:
        raise _explained(path, error) from error
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Bool[np.ndarray, "height width"]:
    """Read a ground-truth mask: true (anomalous) wherever a pixel is neither black nor transparent.

    A JPEG mask is cut at half brightness instead, as its compression leaves faint noise in the black.

    Args:
        path: the mask's file, of any kind that `read_image` reads, or a folder of masks: true where any is.
        size: height and width of the mask's image, or None to accept any.

    Raises:
        ImageError: as `read_image`.
        DataError: the mask's size is not `size`, or a folder holds no masks or masks of several sizes.
    """
    if path.is_dir():
        return _read_masks(path, size)
    image = _decode(path)
    found = (image.height, image.width)
    if size is not None and found != tuple(size):
        raise DataError(
            f"mask {path} is {_measures(*found)} (height × width), but its image is {_measures(*size)}; "
            "make them the same size"
        )
    if _is_16_bit(image):
        return np.asarray(image) > 0
    _require_known_range(path, image)
    floor = 127 if image.format == "JPEG" else 0
    rgba = np.asarray(image.convert("RGBA"))
    return (rgba[:, :, :3] > floor).any(axis=2) & (rgba[:, :, 3] > 0)


def _read_masks(folder: Path, size: tuple[int, int] | None) -> Bool[np.ndarray, "height width"]:
    masks = [read_mask(path, size) for path in find_images(folder)]
    if len({mask.shape for mask in masks}) != 1:
        raise DataError(f"the folder {folder} must hold masks, all of one size; it holds {len(masks)}; copy it anew")
    return np.array(np.logical_or.reduce(masks))


def resize_image(
    image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Resize to `size` (height, width) bilinearly; antialiased where it shrinks."""
    if image.shape[:2] == tuple(size):
        return image.copy()
    return np.array(Image.fromarray(image).resize(_pillow_size(size), Image.Resampling.BILINEAR))


def resize_map(
    anomaly_map: Float32[np.ndarray, "height width"], size: tuple[int, int]
) -> Float32[np.ndarray, "new_height new_width"]:
    """Resize a map of real values to `size` (height, width) bilinearly; antialiased where it shrinks.

    Pixel centres lie at half-integers, as in torch's `interpolate` with `align_corners=False`.
    """
    if anomaly_map.shape == tuple(size):
        return anomaly_map.copy()
    return np.array(Image.fromarray(anomaly_map).resize(_pillow_size(size), Image.Resampling.BILINEAR))


def resize_mask(
    mask: Bool[np.ndarray, "height width"], size: tuple[int, int]
) -> Bool[np.ndarray, "new_height new_width"]:
    """Resize a mask to `size` (height, width): each pixel takes the value at its centre."""
    # In whole numbers, as rounding would decide for a centre that lies between two pixels.
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(mask.shape, size, strict=True))
    return mask[np.ix_(rows, columns)]


def write_image(path: Path, image: UInt8[np.ndarray, "height width 3"] | UInt8[np.ndarray, "height width"]) -> None:
    """Write RGB or grey bytes in the format of the path's suffix, atomically; lossless but for JPEG and WebP.

    Raises:
        DataError: the suffix names no format that can be written.
        RunError: the file cannot be written.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"cannot write {path}: give the name one of the endings {' '.join(sorted(_FORMATS))}")
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format=kind, **({"quality": 95} if kind == "JPEG" else {}))


def write_png16(path: Path, grey: UInt16[np.ndarray, "height width"]) -> None:
    """Write a 16-bit grey PNG, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    with replacing(path) as temporary:
        Image.fromarray(grey).save(temporary, format="PNG")


def find_images(folder: Path) -> list[Path]:
    """List the image files in a folder and its subfolders, as `iter_images` yields them.

    Raises:
        DataError: the folder is missing, is a file, or cannot be read.
    """
    return list(iter_images(folder))


def iter_images(folder: Path) -> Iterator[Path]:
    """Yield the image files (by suffix) in a folder and its subfolders, in the order of their POSIX paths.

    Hidden files and folders are left out, and the pictures that `predict` wrote beside its results. Links are
    followed, each folder once, so loops end.

    Raises:
        DataError: the folder is missing or is a file (at the call), or a folder cannot be read (on the way).
    """
    require_folder(folder)
    return _walk(folder)


def require_folder(folder: Path) -> None:
    """Refuse a path that is no folder.

    Raises:
        DataError: the folder is missing, is a file, or cannot be reached.
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
    waiting = [(folder, True)]
    seen: set[tuple[int, int]] = set()
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            yield path
            continue
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            waiting.extend(reversed(_entries(path)))
        except OSError as error:
            raise _folder_refusal(path, error) from error


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    named: list[tuple[str, Path, bool]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            try:
                if entry.is_dir():
                    # The slash makes "a.png" come before "a/b.png", as it does among whole paths.
                    named.append((entry.name + "/", path, True))
                elif path.suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
                    named.append((entry.name, path, False))
            except OSError:  # a link to itself
                continue
    # What `predict` wrote is no picture of a product.
    judged = {f"{MAPS}/", f"{OVERLAYS}/"} if (folder / RESULTS).exists() else set()
    return [(path, is_folder) for name, path, is_folder in sorted(named) if name not in judged]


def _decode(path: Path) -> Image.Image:
    """Decode the first frame, upright; every failure is an `ImageError`."""
    try:
        with path.open("rb") as file:
            image = _open_header(path, file)
            kind = image.format
            _load(image)
            turn = _UPRIGHT.get(_orientation(image))
            upright = image if turn is None else image.transpose(turn)
            upright.format = kind  # a transposed copy forgets it
            return upright
    except Exception as error:
        raise _explained(path, error) from error


def _load(image: ImageFile) -> None:
    if not isinstance(image, TiffImageFile) or image.width * image.height < (Image.MAX_IMAGE_PIXELS or 0):
        image.load()
        return
    # Pillow warns of a large TIFF once more when it decodes; `_open_header` has judged the size.
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image.load()


def _open_header(path: Path, file: BinaryIO) -> ImageFile:
    start = file.read(16)
    file.seek(0)
    if not start:
        raise _refusal(path, "the file is empty")
    decoder = _find_decoder(start)
    if decoder is None:
        raise _refusal(path, "not a PNG, JPEG, BMP, TIFF or WebP image")
    image = decoder(file)
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise _refusal(path, f"{_measures(height, width)} pixels; each side needs at least {MIN_SIDE}")
    if width * height > MAX_PIXELS:
        raise _refusal(path, f"{_measures(height, width)} pixels are {_TOO_MANY}")
    return image


def _find_decoder(start: bytes) -> type[ImageFile] | None:
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return WebPImageFile
    return next((decoder for signature, decoder in _SIGNATURES if start.startswith(signature)), None)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        return orientation if isinstance(orientation, int) else 1
    except Exception:  # a damaged EXIF block raises nearly anything, and spoils no pixel
        return 1


def _header_orientation(image: ImageFile, file: BinaryIO) -> tuple[int, int, int]:
    """Width and height as stored, and the orientation, without decoding."""
    if isinstance(image, TiffImageFile):  # some versions of Pillow report the upright size, some the stored
        tags = image.tag_v2
        return int(tags[256]), int(tags[257]), int(tags.get(274, 1))
    width, height = image.size
    # Without an early EXIF chunk Pillow would decode the whole PNG to look for a late one.
    if isinstance(image, PngImageFile) and not any("exif" in str(key).lower() for key in image.info):
        position = file.tell()
        late = b"eXIf" in _png_chunks(file)
        file.seek(position)
        return width, height, _orientation(image) if late else 1
    return width, height, _orientation(image)


def _png_chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        yield name
        file.seek(length + 4, os.SEEK_CUR)


def _is_16_bit(image: Image.Image) -> bool:
    # Pillow before 11 decodes 16-bit grey PNG to mode I.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _scale_to_bytes(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    bits = 16
    if isinstance(image, TiffImageFile):  # 12-bit TIFF arrives in 16-bit pixels
        bits = int(image.tag_v2.get(258, (16,))[0])
    high = 2**bits - 1
    levels = (np.arange(2**16, dtype=np.uint32) * 255 + high // 2) // high
    table = np.minimum(levels, 255).astype(np.uint8)
    return np.take(table, np.asarray(image))


def _require_known_range(path: Path, image: Image.Image) -> None:
    if image.mode in ("I", "F", "LAB", "HSV"):
        raise _refusal(path, f"pixels of mode {image.mode}; convert the image to 8- or 16-bit grey or RGB")


def _explained(path: Path, error: Exception) -> Exception:
    """Say why a file could not be opened or decoded; Pillow raises nearly any kind on a damaged one."""
    if isinstance(error, ImageError | MemoryError):
        return error
    if isinstance(error, Image.DecompressionBombError):  # WebP, whose header Pillow judges itself
        return _refusal(path, f"its pixels are {_TOO_MANY}")
    if isinstance(error, FileNotFoundError):
        return _refusal(path, "no such file")
    if isinstance(error, IsADirectoryError):
        return _refusal(path, "a folder, not an image file")
    if isinstance(error, PermissionError):
        return _refusal(path, "no permission to read it; change the file's permissions")
    return _refusal(path, f"damaged or cut short ({str(error) or type(error).__name__}); copy it anew")


def _refusal(path: Path, reason: str) -> ImageError:
    return ImageError(f"cannot read {path}: {reason}")


def _folder_refusal(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot read the folder {folder}: {error.strerror or error}; check its permissions and links")


def _measures(height: int, width: int) -> str:
    return f"{height:,} × {width:,}"


def _pillow_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    return width, height
