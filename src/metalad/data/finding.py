"""Find categories below a folder of data sets, by the names of their folders."""

import os
from collections.abc import Sequence
from pathlib import Path

from metalad.data.images import require_folder
from metalad.data.published import DATA_SETS, category_named, plain, plain_names

MAX_DEPTH = 3
INSIDE_A_CATEGORY = frozenset({"train", "test", "ground_truth", "images", "Train", "Test", "test_public"})


def folders_below(root: Path) -> list[Path]:
    """Return `root` and the folders below it, floor by floor, at most three floors deep, each floor sorted.

    What lies inside a category is left out, and so are hidden folders.

    Raises:
        DataError: `root` is no folder.
    """
    require_folder(root)
    floor = [root.absolute()]
    found = list(floor)
    for _ in range(MAX_DEPTH):
        floor = [below for folder in floor for below in _below(folder)]
        found += floor
    return found


def folders_named(folders: Sequence[Path], category: str) -> list[Path]:
    """Return the folders that may hold a category, in the given order.

    Args:
        folders: where to look.
        category: the name of its folder, or SET/CATEGORY, where SET must be the name of a folder around it (or its
            own); case, spaces and hyphens do not matter, and a published set or category has its other names too.
    """
    group, _, last = category.rpartition("/")
    published = category_named(category)
    names = {plain(last)} | (plain_names(published) if published else frozenset())
    groups = {plain(group)}
    for data_set in DATA_SETS:
        if plain(group) in plain_names(data_set):
            groups |= plain_names(data_set)
    return [
        folder
        for folder in folders
        if plain(folder.name) in names and (not group or groups & set(map(plain, folder.parts)))
    ]


def _below(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:  # a folder that may not be read holds nothing for us
        return []
    return [] if INSIDE_A_CATEGORY & set(names) else [folder / name for name in sorted(names)]
