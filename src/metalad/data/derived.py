"""Recognize pictures that were made from the images: thumbnails, and the overlays and maps that metalad writes."""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path

MARK = "written by metalad"
"""Stored in the overlays and maps, so that they are recognized wherever they are copied to."""
_MARKED_BYTES = 1024
_SEARCHED = 10_000
"""Files among which the originals of thumbnails are searched."""
_PICTURES = frozenset({"maps", "overlays", "outliers"})
_THUMBNAIL = "thumb(?:nail)?s?|previews?|vorschau|miniaturas?|miniatures?|サムネイル|缩略图|縮圖"
_THUMBNAIL_FOLDER = re.compile(rf"[_.]*(?:{_THUMBNAIL})(?:_?\d+(?:x\d+)?)?", re.IGNORECASE)
_THUMBNAIL_STEM = re.compile(
    rf"(?P<after>.+)[_\-. ](?:{_THUMBNAIL})|(?:{_THUMBNAIL})[_\-. ](?P<before>.+)", re.IGNORECASE
)


def is_written_picture(path: Path) -> bool:
    """Return whether a file is an overlay or a map that metalad wrote."""
    try:
        with path.open("rb") as file:
            return is_written_content(file.read(_MARKED_BYTES))
    except OSError:  # an unreadable file is reported when it is read as an image
        return False


def is_written_content(content: bytes) -> bool:
    """Return whether the content of a file is that of an overlay or a map that metalad wrote."""
    return MARK.encode() in content[:_MARKED_BYTES]


def is_folder_of_written_pictures(folder: Path) -> bool:
    """Return whether a folder has the name of an output folder, and its first file is a picture that metalad wrote."""
    if folder.name.casefold() not in _PICTURES:
        return False
    first = next(_files(folder), None)
    return first is not None and is_written_picture(first)


def is_folder_of_thumbnails(folder: Path) -> bool:
    """Return whether a folder has a name such as Thumbs, and one of its files is a smaller copy of a file beside it.

    Smaller means at most half as many bytes, in a file of the same name outside of the folder but below its parent.
    """
    if not _THUMBNAIL_FOLDER.fullmatch(folder.name):
        return False
    own = {_original_stem(path.stem): path for path in islice(_files(folder), _SEARCHED)}
    others = (path for path in _files(folder.parent) if not path.is_relative_to(folder))
    return any(path.stem in own and _is_smaller(own[path.stem], path) for path in islice(others, _SEARCHED))


def thumbnails_beside(paths: Collection[Path]) -> set[Path]:
    """Return the files of one folder that are thumbnails of others, such as `000_thumb.jpg` beside `000.png`."""
    named = [path for path in paths if _original_stem(path.stem) != path.stem]
    if not named:
        return set()
    by_stem = {path.stem: path for path in paths}
    originals = ((path, by_stem.get(_original_stem(path.stem))) for path in named)
    return {path for path, original in originals if original is not None and _is_smaller(path, original)}


def count_files(folder: Path, suffixes: Iterable[str]) -> int:
    """Return the number of files with one of the suffixes, in lower case, in a folder and its subfolders."""
    wanted = frozenset(suffixes)
    return sum(path.suffix.lower() in wanted for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _original_stem(stem: str) -> str:
    name = _THUMBNAIL_STEM.fullmatch(stem)
    return (name["after"] or name["before"]) if name else stem


def _is_smaller(path: Path, original: Path) -> bool:
    try:
        return path.stat().st_size * 2 <= original.stat().st_size
    except OSError:
        return False
