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
class CategoryFolder:
    """The folder of a category; `path` is None for an absent one, with the `reason` in one line."""

    category: str
    path: Path | None
    reason: str = ""


def published_splits(categories: Iterable[str]) -> dict[str, Mapping[Part, int]]:
    """Return the published numbers of images of those categories that were published with a split."""
    known = {name: category_named(name) for name in categories}
    return {name: category.counts for name, category in known.items() if category is not None and category.has_split}


def find_categories(
    root: Path, categories: Iterable[str], published: Mapping[str, Mapping[Part, int]]
) -> dict[str, CategoryFolder]:
    """Find each category: a folder of its name, in any spelling, at most three levels below `root`.

    Of several folders, the nearest one with training and test images in the published numbers is used.

    Args:
        root: contains the data sets; may itself be one.
        categories: their names, or SET/CATEGORY for one in a folder of the set's name; case, spaces and hyphens are
            ignored.
        published: numbers of images that a category must have; a category not listed may have any number.

    Raises:
        DataError: `root` is not a folder.
    """
    folders = folders_below(root)
    return {name: _choose(name, folders_named(folders, name), published.get(name, {})) for name in categories}


def _choose(name: str, folders: list[Path], published: Mapping[Part, int]) -> CategoryFolder:
    reason = "no folder of this name"
    for folder in folders:
        try:
            category = read_category(folder)
        except DataError as error:
            reason = str(error)
            continue
        faults = differences(published, count_images(category))
        if not category.train or not category.test:
            reason = f"{folder} has {len(category.train)} training images and {len(category.test)} test images"
        elif faults:
            reason = f"{folder} is not the whole category: {'; '.join(faults)}"
        else:
            return CategoryFolder(name, folder)
    return CategoryFolder(name, None, reason)
