"""A folder of pictures beside a page, for those that are too many or too large to be embedded."""

import base64
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metalad.runtime.files import os_errors_as_run_errors
from metalad.runtime.sidecar import replace_own_files
from metalad.visualization.overlay import JPEG_MAX_SIDE
from metalad.visualization.pictures import THUMBNAIL_SIDE, EmbeddedPicture, Picture

OWN = "[0-9][0-9][0-9][0-9][0-9]-*.*"
"""Pattern of the names of the pictures."""
JPEG_QUALITY = 92
MAX_PIXELS = 400_000_000
"""Pixels of all full-size pictures of a page: 0.1 to 0.2 GB. Half of them are kept for wrong decisions."""


class PictureFolder:
    """Writes pictures into `PAGE_files` beside `PAGE.html`; their names are relative to the page.

    The folder has a temporary name until `publish`, so that an interrupted command leaves the former one.
    `write_full_size` may be called from several threads.
    """

    def __init__(self, page: Path, max_pixels: int = MAX_PIXELS) -> None:
        self._folder = page.with_name(f"{page.stem}_files")
        self._temporary = page.with_name(f".{self._folder.name}.new")
        self._left = max_pixels
        self._reserved = max_pixels // 2
        self._lock = threading.Lock()
        self.close()

    def write_full_size(
        self, number: int, pictures: Mapping[str, Picture | None], is_important: bool
    ) -> dict[str, str | None]:
        """Write the pictures of one image that a thumbnail would shrink, and return their names by label.

        Without effect once the pixels are used up; `is_important` pictures may also use the reserved ones.

        Raises:
            RunError: a file cannot be written.
        """
        large = {label: each for label, each in pictures.items() if each is not None and _is_large(each)}
        needed = sum(each.shape[0] * each.shape[1] for each in large.values())
        with self._lock:
            if self._left - needed < (0 if is_important else self._reserved):
                large = {}
            else:
                self._left -= needed
        return {label: self._write(number, label, large[label]) if label in large else None for label in pictures}

    def move_thumbnail(self, number: int, label: str, picture: EmbeddedPicture) -> EmbeddedPicture:
        """Write an embedded picture as a file, and return it with the file's name instead of the data.

        Raises:
            RunError: the file cannot be written.
        """
        kind, data = picture.uri.removeprefix("data:image/").split(";base64,", 1)
        name = f"{_name(number, label)}-small.{'jpg' if kind == 'jpeg' else kind}"
        with os_errors_as_run_errors(self._folder):
            self._temporary.mkdir(parents=True, exist_ok=True)
            (self._temporary / name).write_bytes(base64.b64decode(data))
        return replace(picture, uri=f"{self._folder.name}/{name}")

    def publish(self) -> None:
        """Replace the pictures of the former page; other files in the folder stay.

        Raises:
            RunError: it cannot be replaced.
        """
        replace_own_files(self._folder, self._temporary, OWN)

    def close(self) -> None:
        """Delete what was not published."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _write(self, number: int, label: str, picture: Picture) -> str:
        # A mask has two values: PNG is exact and smaller. Hairlines need color at full resolution, too.
        is_mask = picture.ndim == 2 or max(picture.shape[:2]) > JPEG_MAX_SIDE
        name = f"{_name(number, label)}.{'png' if is_mask else 'jpg'}"
        with os_errors_as_run_errors(self._folder):
            self._temporary.mkdir(parents=True, exist_ok=True)
            options: dict[str, Any] = {} if is_mask else {"quality": JPEG_QUALITY, "subsampling": 0}
            Image.fromarray(np.ascontiguousarray(picture)).save(self._temporary / name, **options)
        return f"{self._folder.name}/{name}"


def _is_large(picture: Picture) -> bool:
    height, width = picture.shape[:2]
    return bool(height > THUMBNAIL_SIDE or width > THUMBNAIL_SIDE)


def _name(number: int, label: str) -> str:
    return f"{number:05}-{label.lower().replace(' ', '-')}"
