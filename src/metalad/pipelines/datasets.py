"""The published data sets that are known by name, and checks of whether a copy of one is complete."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metalad.data import Category, read_category
from metalad.data.counting import count_images, differences
from metalad.data.finding import folders_below, folders_named
from metalad.data.layouts import PLAIN
from metalad.data.published import DATA_SETS, DataSet, Part, PublishedCategory, data_set_named
from metalad.runtime.errors import ConfigError, DataError

State = Literal["whole", "partial", "unreadable", "absent"]


@dataclass(frozen=True)
class CategoryCopy:
    """A copy of a published category.

    path: its folder; None if there is none of its name.
    found: its numbers of images, by published part; empty if nothing can be read.
    faults: what is missing, superfluous or unreadable; one line each.
    """

    category: str
    path: Path | None
    found: Mapping[Part, int]
    faults: tuple[str, ...]

    @property
    def state(self) -> State:
        """`whole` if the copy has exactly what was published."""
        if not self.found:
            return "absent" if self.path is None else "unreadable"
        return "partial" if self.faults else "whole"


@dataclass(frozen=True)
class DataSetCopy:
    """A data set, and the copy of each of its categories; no copies if no folder was given."""

    data_set: DataSet
    copies: tuple[CategoryCopy, ...] = ()

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.data_set.name

    @property
    def is_whole(self) -> bool:
        """Whether no category is partial, unreadable or absent."""
        return all(copy.state == "whole" for copy in self.copies)

    def to_json(self) -> dict[str, Any]:
        """Return the data set and its copies as JSON's own types."""
        copies = {copy.category: copy for copy in self.copies}
        return {
            "name": self.data_set.name,
            "title": self.data_set.title,
            "paper": self.data_set.paper,
            "licence": self.data_set.licence,
            "categories": [
                {"name": category.name, "published": dict(category.counts), **_to_json(copies.get(category.name))}
                for category in self.data_set.categories
            ],
            **({"whole": self.is_whole} if copies else {}),
        }

    def text(self) -> str:
        """Return the data set and its copies as lines of text."""
        known = self.data_set
        lines = [f"{known.name}: {known.title} ({known.paper}; licence: {known.licence or 'see its authors'})"]
        width = max(len(category.name) for category in self.data_set.categories)
        copies = {copy.category: copy for copy in self.copies}
        for category in self.data_set.categories:
            copy = copies.get(category.name)
            first, *others = _lines(category, copy)
            lines += [f"  {category.name:{width}}  {first}", *(f"  {'':{width}}  {other}" for other in others)]
        return "\n".join([*lines, _summary(self.copies)] if copies else lines)


def datasets(name: str | None = None, data: str | Path | None = None) -> tuple[DataSetCopy, ...]:
    """Return the data sets that are known by name, or one of them, and compare a copy of it with what was published.

    Nothing is downloaded. No image is decoded, except masks where they alone separate good from anomalous images.

    Args:
        name: of one set, such as `mvtec`, in any spelling; all by default.
        data: the folder that contains that set's categories, at most three levels deep.

    Raises:
        ConfigError: no such set, or a folder without a set. DataError: `data` is no folder.
    """
    if name is None:
        if data is not None:
            raise ConfigError(
                f"which data set is to be checked in {data}? give its name; `metalad datasets` lists them"
            )
        return tuple(map(DataSetCopy, DATA_SETS))
    data_set = data_set_named(name)
    if data is None:
        return (DataSetCopy(data_set),)
    folders = folders_below(Path(data))
    return (DataSetCopy(data_set, tuple(_check(data_set, category, folders) for category in data_set.categories)),)


def _check(data_set: DataSet, category: PublishedCategory, folders: Sequence[Path]) -> CategoryCopy:
    """Compare the best folder of a category's name: a complete one, or else the one with the most images."""
    best = CategoryCopy(category.name, None, {}, ("no folder of this name",))
    within = folders_named(folders, f"{data_set.name}/{category.name}")
    for folder in within or folders_named(folders, category.name):
        copy = _compare(data_set, category, folder)
        if copy.state == "whole":
            return copy
        if best.path is None or sum(copy.found.values()) > sum(best.found.values()):
            best = copy
    if not best.found and len(data_set.categories) == 1:
        # The given folder itself may be the category, under any name.
        itself = _compare(data_set, category, folders[0])
        return itself if itself.found else best
    return best


def _compare(data_set: DataSet, category: PublishedCategory, folder: Path) -> CategoryCopy:
    try:
        images = read_category(folder)
    except DataError as error:
        return CategoryCopy(category.name, folder, {}, (str(error),))
    if images.layout == PLAIN:
        fault = f"{folder} holds images, but no folders or lists that say which are good"
        return CategoryCopy(category.name, folder, {}, (fault,))
    every = count_images(images)
    found = {part: every[part] for part in category.counts}
    return CategoryCopy(
        category.name, folder, found, (*differences(category.counts, found), *_masks_missing(data_set, images))
    )


def _masks_missing(data_set: DataSet, images: Category) -> tuple[str, ...]:
    anomalous = [sample for sample in images.test if sample.abnormal]
    unmasked = [sample for sample in anomalous if sample.mask is None]
    if not data_set.masks or not unmasked:
        return ()
    return (f"{len(unmasked)} of {len(anomalous)} anomalous test images have no mask, such as {unmasked[0].name}",)


def _lines(category: PublishedCategory, copy: CategoryCopy | None) -> list[str]:
    if copy is None:
        return [", ".join(f"{part} {count:,}" for part, count in category.counts.items())]
    if not copy.found:
        return [f"{copy.state}: {'; '.join(copy.faults)}"]
    counts = ", ".join(f"{part} {copy.found[part]:,} of {count:,}" for part, count in category.counts.items())
    return [f"{copy.state}: {counts} in {copy.path}", *(f"  {fault}" for fault in copy.faults)]


def _summary(copies: Sequence[CategoryCopy]) -> str:
    states = [copy.state for copy in copies]
    others = (f"{states.count(state)} {state}" for state in ("partial", "unreadable", "absent"))
    return f"{states.count('whole')} of {len(states)} whole, {', '.join(others)}"


def _to_json(copy: CategoryCopy | None) -> dict[str, Any]:
    if copy is None:
        return {}
    path = None if copy.path is None else str(copy.path)
    return {"state": copy.state, "path": path, "found": dict(copy.found), "faults": list(copy.faults)}
