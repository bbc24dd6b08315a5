"""How image files are read, notes about what was read differently than stored, and the white level of 16-bit files."""

import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metalad.data.decoding import decode_file, is_16_bit_file
from metalad.data.text import number_of
from metalad.runtime.errors import ImageError

FULL_RANGE = 65535
"""The white level of files that use all 16 bits."""
MIN_WHITE_LEVEL = 255
FRAMES_NOTE = "with several pages or frames, of which only the first is read"
ALPHA_NOTE = "with an alpha channel of 0 throughout, which is ignored"
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
        highest = max((value for value in pool.map(_highest_value, paths) if value is not None), default=None)
    return FULL_RANGE if highest is None else white_level_for(highest)


def _highest_value(path: Path) -> int | None:
    try:
        if not is_16_bit_file(path):
            return None
        values = decode_file(path).values_16
    except ImageError:
        return None
    return None if values is None else int(values.max())
