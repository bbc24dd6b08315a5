"""Find the folders of categories in a folder of data sets, by name."""

import os
from collections.abc import Sequence
from pathlib import Path

from metalad.data.images import require_folder
from metalad.data.published import DATA_SETS, category_named, plain, plain_names
from metalad.data.walking import is_ignored

MAX_DEPTH = 3
"""Levels of subfolders that are searched."""
CATEGORY_SUBFOLDERS = frozenset({"train", "test", "ground_truth", "images", "Train", "Test", "test_public"})
"""Subfolders that identify a folder as a category; its subfolders are not searched."""


def folders_below(root: Path) -> list[Path]:
    """Return `root` and its subfolders in breadth-first order, at most `MAX_DEPTH` levels deep, each level sorted.

    Subfolders of categories and hidden folders are not included.

    Raises:
        DataError: `root` is not a folder.
    """
    require_folder(root)
    level = [root.absolute()]
    folders = list(level)
    for _ in range(MAX_DEPTH):
        level = [subfolder for folder in level for subfolder in _searched_subfolders(folder)]
        folders += level
    return folders


def folders_named(folders: Sequence[Path], category: str) -> list[Path]:
    """Return the folders whose name matches a category, in the given order.

    Args:
        folders: the folders to search.
        category: the name of the folder, or SET/CATEGORY, where SET must be the name of the folder or of one of its
            parents. Case, spaces and hyphens are ignored. For a published set or category, its other names match, too.
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


def _searched_subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not is_ignored(entry.name)]
    except OSError:  # unreadable folders are ignored
        return []
    return [] if CATEGORY_SUBFOLDERS & set(names) else [folder / name for name in sorted(names)]
