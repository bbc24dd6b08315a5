"""Check the category folders of a benchmark, and give each a unique name."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from metalad.data import read_category
from metalad.runtime.errors import ConfigError, DataError


def named_categories(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Return the absolute category folders by their names.

    A category is named after its folder. Where several have the same name, parent folders are prepended until the
    names differ: `first/bottle`, `second/bottle`.

    Args:
        folders: each in a layout that `metalad.data.read_category` reads, with training and test images.

    Raises:
        ConfigError: there is no folder, or one is given twice. DataError: a folder is not such a category.
    """
    if not folders:
        raise ConfigError("no category is given; give --data, one or more category folders")
    paths = [Path(folder).resolve() for folder in folders]
    for given, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise ConfigError(f"the category {given} is given twice; give each category once")
        _check_category(path)
    return dict(zip(_unique_names(paths), paths, strict=True))


def _check_category(path: Path) -> None:
    category = read_category(path)
    if not category.train or not category.test:
        raise DataError(
            f"{path} has {len(category.train)} training images and {len(category.test)} test images; a benchmark needs "
            "both, see docs/datasets.md for the folder layouts"
        )


def _unique_names(paths: Sequence[Path]) -> list[str]:
    depths = [1] * len(paths)
    while True:
        names = ["/".join(path.parts[-depth:]) for path, depth in zip(paths, depths, strict=True)]
        counts = Counter(names)
        if all(count == 1 for count in counts.values()):
            return names
        depths = [depth + (counts[name] > 1) for name, depth in zip(names, depths, strict=True)]
