"""Find categories below a folder of data sets, by the names of their folders."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from metalad.benchmark.paper import plain
from metalad.data import read_category
from metalad.errors import DataError
from metalad.images import require_folder

MAX_DEPTH = 3
INSIDE_A_CATEGORY = frozenset({"train", "test", "ground_truth", "images"})


@dataclass(frozen=True)
class Place:
    """Where a category lies, or, where `path` is None, why it counts as absent."""

    category: str
    path: Path | None
    reason: str = ""


def find_places(root: Path, categories: Iterable[str], published: Mapping[str, tuple[int, int]]) -> dict[str, Place]:
    """Find each category: the folder of its name, in any spelling, at most three floors below `root`.

    Of several folders the nearest counts that has images to train on and to test on, as many as published.

    Args:
        root: holds the data sets; may itself be one.
        categories: the wanted names; case, spaces and hyphens do not matter.
        published: numbers of training and test images that a category must have; one not listed may be of any size.

    Raises:
        DataError: `root` is no folder.
    """
    require_folder(root)
    named: dict[str, list[Path]] = {}
    for folder in _folders(root):
        named.setdefault(plain(folder.name), []).append(folder)
    return {name: _choose(name, named.get(plain(name), []), published.get(name)) for name in categories}


def _folders(root: Path) -> Iterator[Path]:
    """Yield folders floor by floor, each floor sorted; what lies inside a category is left out."""
    floor = [root.absolute()]
    for depth in range(MAX_DEPTH + 1):
        yield from floor
        if depth < MAX_DEPTH:
            floor = [below for folder in floor for below in _below(folder)]


def _below(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:  # a folder that may not be read holds nothing for us
        return []
    return [] if INSIDE_A_CATEGORY & set(names) else [folder / name for name in sorted(names)]


def _choose(name: str, folders: list[Path], wanted: tuple[int, int] | None) -> Place:
    reason = "no folder of this name"
    for folder in folders:
        try:
            category = read_category(folder)
        except DataError as error:
            reason = str(error)
            continue
        found = len(category.train), len(category.test)
        if 0 in found:
            reason = f"{folder} has {found[0]} images to train on and {found[1]} to test on"
        elif wanted is not None and found != wanted:
            reason = f"{folder} is not the whole category: {found[0]} + {found[1]} images of {wanted[0]} + {wanted[1]}"
        else:
            return Place(name, folder)
    return Place(name, None, reason)
