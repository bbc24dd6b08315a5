"""Find the categories of a suite below a folder of data sets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from metalad.data import read_category
from metalad.data.counting import count_images, differences
from metalad.data.finding import folders_below, folders_named
from metalad.data.published import Part, category_named
from metalad.runtime.errors import DataError


@dataclass(frozen=True)
class Place:
    """Where a category lies, or, where `path` is None, why it counts as absent."""

    category: str
    path: Path | None
    reason: str = ""


def published_splits(categories: Iterable[str]) -> dict[str, Mapping[Part, int]]:
    """Return the published numbers of images of those categories that were published with a split."""
    known = {name: category_named(name) for name in categories}
    return {name: category.counts for name, category in known.items() if category is not None and category.has_split}


def find_places(root: Path, categories: Iterable[str], published: Mapping[str, Mapping[Part, int]]) -> dict[str, Place]:
    """Find each category: the folder of its name, in any spelling, at most three floors below `root`.

    Of several folders the nearest counts that has images to train on and to test on, as many as published.

    Args:
        root: holds the data sets; may itself be one.
        categories: the wanted names, or SET/CATEGORY for one in a folder of the set's name; case, spaces and hyphens
            do not matter.
        published: numbers of images that a category must have; one not listed may be of any size.

    Raises:
        DataError: `root` is no folder.
    """
    folders = folders_below(root)
    return {name: _choose(name, folders_named(folders, name), published.get(name, {})) for name in categories}


def _choose(name: str, folders: list[Path], published: Mapping[Part, int]) -> Place:
    reason = "no folder of this name"
    for folder in folders:
        try:
            category = read_category(folder)
        except DataError as error:
            reason = str(error)
            continue
        faults = differences(published, count_images(category))
        if not category.train or not category.test:
            reason = f"{folder} has {len(category.train)} images to train on and {len(category.test)} to test on"
        elif faults:
            reason = f"{folder} is not the whole category: {'; '.join(faults)}"
        else:
            return Place(name, folder)
    return Place(name, None, reason)
