"""Names of the maps and overlays: unique, accepted by the file system, and never those of existing files."""

import hashlib
import os
import unicodedata
from pathlib import Path

from metalad.data.images import MAPS, OVERLAYS

SUFFIXES = (".png", ".jpg")
TEMPORARY_NAME = 22
"""Length of the names that files have while they are written, see `metalad.runtime.files.replacing`."""
DIGEST = 12


class OutputNames:
    """Gives each image a name of its own below the folder `out`.

    A name is a relative path without a suffix. Upper and lower case count as equal, as on many file systems.
    """

    def __init__(self, out: Path) -> None:
        self._folders = (out / MAPS, out / OVERLAYS)
        self._part_limit, path_limit = _limits(out)
        longest = max(len(os.fsencode(os.path.abspath(folder))) for folder in self._folders)  # noqa: PTH100
        self._path_limit = path_limit - longest - 1
        # Hashes instead of names: 100,000 take 8 MB, and a false match only lengthens a name.
        self._names: set[int] = set()
        self._parents: set[int] = set()

    def add(self, wanted: str) -> str:
        """Return a name for an image: `wanted` if it is free and short enough, else one that begins like it."""
        *parents, last = wanted.split("/")
        parents = [shortened(part, self._part_limit) for part in parents]
        folder = "/".join(parents)
        if self._is_too_long(folder) or any(_is_picture_of(each, self._names) for each in (*_parents(folder), folder)):
            parents, last = [], wanted.replace("/", "_")
        number, addition = 1, ""
        while True:
            name = "/".join([*parents, shortened(last, self._last_limit(parents) - len(addition)) + addition])
            if self._is_free(name):
                break
            number += 1
            addition = f"-{number}"
        self._names.add(_key(name))
        self._parents.update(map(_key, _parents(name)))
        return name

    def _last_limit(self, parents: list[str]) -> int:
        rest = self._path_limit - sum(len(os.fsencode(part)) + 1 for part in parents)
        return min(self._part_limit, rest) - len(SUFFIXES[0])

    def _is_too_long(self, folder: str) -> bool:
        """Return whether a folder of outputs leaves no room for files with short names."""
        return len(os.fsencode(folder)) + 1 + TEMPORARY_NAME + DIGEST > self._path_limit

    def _is_free(self, name: str) -> bool:
        files = [name + suffix for suffix in SUFFIXES]
        if _key(name) in self._names or any(_key(file) in self._parents for file in files):
            return False
        return not any(os.path.lexists(folder / file) for folder in self._folders for file in files)


def shortened(name: str, limit: int) -> str:
    """Return a name of at most `limit` bytes: a longer one is cut, and ends with a hash of the whole."""
    encoded = os.fsencode(name)
    if len(encoded) <= limit:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:DIGEST]
    return f"{encoded[: limit - DIGEST - 1].decode(errors='ignore')}-{digest}"


def _limits(out: Path) -> tuple[int, int]:
    """Return the maximum lengths of a name and of a path, in bytes, of the file system that `out` is on."""
    folder = next(path for path in (out, *out.absolute().parents) if path.is_dir())
    try:
        return os.pathconf(folder, "PC_NAME_MAX"), os.pathconf(folder, "PC_PATH_MAX") - 1
    except (AttributeError, OSError, ValueError):
        return 255, 259  # those of Windows


def _is_picture_of(path: str, names: set[int]) -> bool:
    stem, suffix = os.path.splitext(path)  # noqa: PTH122
    return suffix.lower() in SUFFIXES and _key(stem) in names


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _key(name: str) -> int:
    return hash(unicodedata.normalize("NFC", name).casefold())
