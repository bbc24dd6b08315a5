"""Read test images, and find those with the pixels of a training image."""

import threading
from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from metalad.data.images import read_image
from metalad.data.likeness import listed, pixel_hash, short_hash
from metalad.data.reading import Reading
from metalad.data.text import number_of


class CopyReader:
    """Reads images as `read_image` does, and remembers those whose pixels are known; threads may share it.

    known: hashes of the training images, see `metalad.data.likeness.short_hash`; empty if they are unknown.
    """

    def __init__(self, reading: Reading, known: Collection[str]) -> None:
        self._reading, self._known = reading, frozenset(known)
        self._copies: set[Path] = set()
        self._lock = threading.Lock()

    def read(self, path: Path) -> UInt8[np.ndarray, "height width 3"]:
        """Return an image as RGB bytes; raises as `read_image`."""
        image = read_image(path, self._reading)
        if self._known and short_hash(pixel_hash(image)) in self._known:
            with self._lock:
                self._copies.add(path)
        return image

    def notes(self) -> tuple[str, ...]:
        """Return lines about images that were read differently than stored, and about copies of training images."""
        if not self._copies:
            return self._reading.notes.lines()
        names = listed(sorted(map(str, self._copies)))
        count = number_of(len(self._copies), "test image")
        copies = f"{count} identical to training images, which makes the metrics too good: {names}"
        return (*self._reading.notes.lines(), copies)
