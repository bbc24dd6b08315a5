"""How image files are read, notes about what was read differently than stored, and the white level of 16-bit files."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from metalad.data.decoding import count_pages, decode_file, is_16_bit_file
from metalad.data.pages import page_path
from metalad.data.sixteen_bits import Decoded
from metalad.data.text import number_of
from metalad.data.video import is_video, list_frames
from metalad.runtime.errors import ImageError

FULL_RANGE = 65535
"""The white level of files that use all 16 bits."""
MIN_WHITE_LEVEL = 255
FRAMES_NOTE = "with several pages or frames, of which only the first is read"
ALPHA_NOTE = "with an alpha channel of 0 throughout, which is ignored"
WRITTEN_NOTE = "that metalad wrote, an overlay or a map instead of a photograph"
_SINGLE_PAGE = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".bmp"})
UNUSED_BITS = 4
"""A 16-bit image that leaves this many of the highest bits unused would be almost black to the model."""


class NoteCounter:
    """Counts notes about images; the images of one note are counted once each, and the first is named."""

    def __init__(self) -> None:
        self._paths: dict[str, dict[Path, None]] = {}
        self._lock = threading.Lock()

    def add(self, path: Path, notes: Iterable[str]) -> None:
        """Count the notes of an image."""
        with self._lock:
            for note in notes:
                self._paths.setdefault(note, {})[path] = None

    def of(self, path: Path) -> tuple[str, ...]:
        """Return the notes of an image."""
        with self._lock:
            return tuple(note for note, paths in self._paths.items() if path in paths)

    def lines(self) -> tuple[str, ...]:
        """Return a line for each note, with the number of images and an example (the first path in order)."""
        with self._lock:
            return tuple(
                f"{number_of(len(paths), 'image')} {note}, such as {min(paths)}" for note, paths in self._paths.items()
            )


class Reading:
    """How image files are read, and the notes about them; threads may share it.

    white_level: the value of 16-bit files that is read as 255; higher values are clipped.
    strict: refuse files with several pages or frames, unless a path selects a page.
    """

    def __init__(self, white_level: int = FULL_RANGE, *, strict: bool = False) -> None:
        self.white_level, self.strict = white_level, strict
        self.notes = NoteCounter()

    def __reduce__(self) -> tuple[Callable[[], "Reading"], tuple[()]]:
        """Pickle and copy without the notes: those of another process cannot join these."""
        return partial(Reading, self.white_level, strict=self.strict), ()


def range_note(highest: int, white_level: int) -> str | None:
    """Describe 16-bit values that do not fit the white level; None if they fit."""
    if highest > white_level:
        return f"with 16-bit values above {white_level}, which are clipped"
    if 0 < highest <= white_level >> UNUSED_BITS:
        return f"with 16-bit values that use less than a sixteenth of the range up to {white_level}, almost black"
    return None


def white_level_for(highest: int) -> int:
    """Return the white level for the highest value of 16-bit images: the next power of two, minus one.

    At least 255; the full range if all images are black.
    """
    return max((1 << highest.bit_length()) - 1, MIN_WHITE_LEVEL) if highest else FULL_RANGE


def find_white_level(paths: Sequence[Path]) -> int:
    """Return the white level of image files, from the highest value among those with 16 bits.

    Cameras store 10 or 12 bits in 16-bit files; without the white level, few gray levels would be left. Files that
    declare 12 bits are not used, because their range is known. Unreadable files are ignored: they are reported when
    they are read as images.
    """
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
        return common_white_level(pool.map(_highest_in_file, paths))


def common_white_level(highest_values: Iterable[int | None]) -> int:
    """Return the white level for the highest value of each image; None for images without 16 bits."""
    highest = max((value for value in highest_values if value is not None), default=None)
    return FULL_RANGE if highest is None else white_level_for(highest)


def highest_value(decoded: Decoded) -> int | None:
    """Return the highest value of an image with 16 bits; None for another one."""
    values = decoded.values_16 if decoded.bits == 16 else None
    if values is None:
        return None
    has_alpha = values.ndim == 3 and values.shape[2] in (2, 4)
    return int((values[:, :, :-1] if has_alpha else values).max())


def with_pages(paths: Iterable[Path], every: int = 1) -> Iterator[Path]:
    """Yield image files, and in place of a file with several pages or frames, the path of each, such as `scan.tif[2]`.

    JPEG files are yielded as they are: opening all of them would take too long, and few have further pages. Of a video
    file each `every`-th frame is yielded, such as `clip.mp4[312@12.480s]`.

    Raises:
        ImageError: a video file cannot be decoded. ConfigError: OpenCV, which reads videos, is not installed.
    """
    for path in paths:
        if is_video(path):
            yield from list_frames(path, every)
            continue
        try:
            count = 1 if path.suffix.lower() in _SINGLE_PAGE else count_pages(path)
        except ImageError:  # reported when it is read as an image
            count = 1
        yield from [path] if count == 1 else (page_path(path, number) for number in range(1, count + 1))


def _highest_in_file(path: Path) -> int | None:
    try:
        return highest_value(decode_file(path)) if is_16_bit_file(path) else None
    except ImageError:
        return None
