"""Pages and frames of files: their number, and paths such as `scan.tif[2]` that select one."""

import re
import struct
from pathlib import Path
from typing import BinaryIO

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.MpoImagePlugin import MpoImageFile
from PIL.TiffImagePlugin import TiffImageFile

_PAGE = re.compile(r"(?P<name>.+)\[(?P<number>[1-9]\d{0,6})(@\d+\.\d{3}s)?\]")
"""A frame of a video has its time after the number, see `metalad.data.video`."""
_SUBFILE_TYPE = 254
_REDUCED_OR_MASK = 1 | 4
_MAX_DIRECTORIES = 100_000


def split_page(path: Path) -> tuple[Path, int | None]:
    """Return the file and the page number, from 1, of a path such as `scan.tif[2]`; the number is None without one.

    A file whose own name ends this way is returned as it is.
    """
    match = _PAGE.fullmatch(path.name)
    if match is None or path.exists():
        return path, None
    return path.with_name(match["name"]), int(match["number"])


def page_path(path: Path, number: int) -> Path:
    """Return the path that selects a page of a file, from 1."""
    return path.with_name(f"{path.name}[{number}]")


def pages_of(image: ImageFile, file: BinaryIO) -> tuple[int, ...]:
    """Return the indices of the frames of an opened file that are pages.

    Not counted are previews and masks: reduced TIFF directories, and further JPEG images of another size, such as gain
    maps.
    """
    position = file.tell()
    try:
        if isinstance(image, TiffImageFile):
            return _tiff_pages(file)
        if isinstance(image, JpegImageFile) and "mp" in image.info:
            return _jpeg_pages(file)
    except Exception:  # a damaged list of pages does not affect the first one
        return (0,)
    finally:
        file.seek(position)
    return tuple(range(max(1, int(getattr(image, "n_frames", 1) or 1))))


def _jpeg_pages(file: BinaryIO) -> tuple[int, ...]:
    file.seek(0)
    image = MpoImageFile(file)
    size, pages = image.size, [0]
    for index in range(1, image.n_frames):
        image.seek(index)
        if image.size == size:
            pages.append(index)
    return tuple(pages)


def _tiff_pages(file: BinaryIO) -> tuple[int, ...]:
    """Read the list of directories; Pillow would interpret each of them, which fails for some."""
    file.seek(0)
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    is_big = struct.unpack(f"{order}H", start[2:4])[0] == 43
    offset_format = f"{order}Q" if is_big else f"{order}I"
    (offset,) = struct.unpack_from(offset_format, start, 8 if is_big else 4)
    pages, visited = [], set[int]()
    while offset and offset not in visited and len(visited) < _MAX_DIRECTORIES:
        visited.add(offset)
        try:
            subfile_type, offset = _read_directory(file, offset, order, is_big)
        except (struct.error, OverflowError):  # truncated
            break
        if not subfile_type & _REDUCED_OR_MASK:
            pages.append(len(visited) - 1)
    return tuple(pages) if pages and pages[0] == 0 else (0, *pages)


def _read_directory(file: BinaryIO, offset: int, order: str, is_big: bool) -> tuple[int, int]:
    """Return the subfile type of a TIFF directory, and the offset of the next directory."""
    file.seek(offset)
    count_format, entry_bytes, next_format = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    (count,) = struct.unpack(order + count_format, file.read(struct.calcsize(count_format)))
    entries = file.read(min(count, 65536) * entry_bytes)
    (following,) = struct.unpack(order + next_format, file.read(struct.calcsize(next_format)))
    for start in range(0, len(entries), entry_bytes):
        tag, kind = struct.unpack_from(f"{order}HH", entries, start)
        if tag == _SUBFILE_TYPE:
            value_format = "H" if kind == 3 else "I"
            return int(struct.unpack_from(order + value_format, entries, start + (12 if is_big else 8))[0]), following
    return 0, following
