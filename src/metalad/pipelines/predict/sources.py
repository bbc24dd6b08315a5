"""The images to process, and the names of their maps and overlays."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from metalad.data.images import IMAGE_SUFFIXES, MAPS, OVERLAYS
from metalad.data.live import live_source
from metalad.data.pages import split_page
from metalad.data.products import iter_products
from metalad.data.reading import with_pages
from metalad.data.walking import LeftOut
from metalad.pipelines.predict.output_names import OutputNames
from metalad.runtime.errors import DataError
from metalad.runtime.files import dead_link_target, special_kind
from metalad.runtime.progress import logger


@dataclass(frozen=True)
class Source:
    """An image file, and the name of its outputs: a relative path without a suffix."""

    path: Path
    name: str


def find_sources(paths: Sequence[Path], out: Path, every: int = 1) -> Iterator[Source]:
    """Yield the images among `paths` and in the folders among them, in order, each with a name of its own.

    A file with several pages gives a source for each, with a path such as `scan.tif[2]`; a video file, which must be
    given itself, one for each `every`-th frame.

    A name is the path below the given folder, or below the common folder if several paths are given, see `OutputNames`.
    Files in the maps and overlays of `out` are left out: they are results. Other files in folders that are left out,
    such as masks, are counted, and a line about them is logged at the end.

    Raises:
        DataError: a path does not exist, or is a named pipe or a device, or there are no images (at the call); a folder
            cannot be read (later).
    """
    for path in paths:
        if (live := live_source(path)) is not None:
            raise DataError(f"{live.name} has no end; score its frames with `metalad watch RUN {live.name} --out DIR`")
        try:
            kind = special_kind(split_page(path)[0])
        except OSError as error:
            if (target := dead_link_target(split_page(path)[0])) is not None:
                raise DataError(f"{path} is a link to {target}, which does not exist; mend the link") from error
            raise DataError(f"cannot reach {path}: {error.strerror}; check the path and its permissions") from error
        if kind is not None:
            raise DataError(f"{path} is {kind}, not an image file or a folder; give files or folders")
    own = tuple(Path(os.path.realpath(out / name)) for name in (MAPS, OVERLAYS))
    left_out = LeftOut()
    images = (image for image in _images(paths, left_out, every) if not _lies_in(image, own))
    first = next(images, None)
    if first is None:
        where = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
        others = f"; {line}" if (line := left_out.text()) else ""
        raise DataError(f"no images in {where}; looked for files named {' '.join(sorted(IMAGE_SUFFIXES))}{others}")
    return _named(chain([first], images), _base(paths), OutputNames(out))


def _images(paths: Sequence[Path], left_out: LeftOut, every: int) -> Iterator[Path]:
    for path in paths:
        yield from with_pages(iter_products(path, left_out) if path.is_dir() else (path,), every)
    if line := left_out.text():
        logger.info("%s", line)


def _lies_in(image: Path, folders: tuple[Path, ...]) -> bool:
    parent = Path(os.path.realpath(image.parent))
    return any(parent.is_relative_to(folder) for folder in folders)


def _base(paths: Sequence[Path]) -> Path:
    """Return the folder that names are relative to: the given one, or the common one of all paths."""
    if len(paths) == 1 and paths[0].is_dir():
        return _absolute(paths[0])
    try:
        return Path(os.path.commonpath([_absolute(path).parent for path in paths]))
    except ValueError:  # several Windows drives
        return Path(Path.cwd().anchor)


def _absolute(path: Path) -> Path:
    """Return the path without `..`, which a name must not contain, and with its links, as the user sees it."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _named(images: Iterable[Path], base: Path, names: OutputNames) -> Iterator[Source]:
    for path in images:
        absolute = _absolute(path)
        below = base if absolute.is_relative_to(base) else Path(absolute.anchor)
        file, page = split_page(absolute)
        stem = file.relative_to(below).with_suffix("").as_posix()
        yield Source(path, names.add(stem if page is None else f"{stem}[{page}]"))
