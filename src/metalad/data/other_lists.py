"""Lists of images that `read_category` does not read, and that may tell good images from anomalous ones."""

import contextlib
import json
from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from metalad.data.labels import LabelColumn
from metalad.data.names import role
from metalad.data.tables import read_rows
from metalad.runtime.errors import DataError

_LABELS = "labels.csv"
_RESULTS = "predictions"
"""Stem of the files that `predict` writes."""
_LISTS = (".csv", ".tsv", ".txt", ".json")
_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_MAX_BYTES = 16_000_000
_OVERRIDE = "if all images are good, add --all-good (in Python all_good=True)"
_AS_LABELS = f"save it as labels.csv, with two columns, image and label; {_OVERRIDE}"


def check_other_lists(root: Path, images: Collection[Path]) -> str | None:
    """Describe the lists of images in `root` and in the folders of its images; None without any.

    Raises:
        DataError: a list states which images are good, its name is that of labels, or it is a `labels.csv` below or
            above `root`.
    """
    names = {name for image in images for name in (image.name, image.stem, image.relative_to(root).as_posix())}
    names -= set("0123456789")  # more often labels than names
    listed = [table for table in _tables(root, images) if _is_list(table, root, names, len(images))]
    return f"{listed[0]} lists images, but only labels.csv is read" if listed else None


def _tables(root: Path, images: Iterable[Path]) -> Iterable[Path]:
    suffixes = (*_LISTS, *_SPREADSHEETS)
    for folder in sorted({root, *(image.parent for image in images)}):
        found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes)
        yield from sorted(path for path in found if path.stem.casefold() != _RESULTS)
    with contextlib.suppress(OSError):  # the folder above may be unreadable
        yield from (path for path in root.absolute().parent.iterdir() if path.name.casefold() == _LABELS)


def _is_list(table: Path, root: Path, names: Collection[str], count: int) -> bool:
    """Return whether a file lists images; raises as `check_other_lists`."""
    if table.suffix.lower() in _SPREADSHEETS:
        if role(table.stem) == "mask":
            raise DataError(f"{table} is not read; {_AS_LABELS}")
        return False
    columns = _columns(table)
    listed = max((_listed_images(column, names) for column in columns), default=0)
    if not listed:
        return False
    if table.name.casefold() == _LABELS:
        raise DataError(f"{table} labels images in {root}; give {table.parent}; {_OVERRIDE}")
    if role(table.stem) == "mask" and len(columns) > 1:
        raise DataError(f"{table} is not read; {_AS_LABELS}")
    for heading, *values in columns:
        if LabelColumn.of(heading, values).tells_apart(values):
            raise DataError(
                f"{table} states in its column {heading or 'without a header'} which images are good, but is not read; "
                f"{_AS_LABELS}"
            )
    if listed < count and role(table.stem) in ("good", "bad"):
        raise DataError(f"{table} lists {listed} of {count} images in {root}, so they are not all alike; {_AS_LABELS}")
    return True


def _listed_images(column: Sequence[str], names: Collection[str]) -> int:
    """Return the number of values below a header that name images; 0 if they are fewer than half of the values."""
    values = [value for value in column[1:] if value]
    found = sum(value in names or value.replace("\\", "/").rpartition("/")[2] in names for value in values)
    return found if found > 1 and 2 * found >= len(values) else 0


def _columns(table: Path) -> Sequence[Sequence[str]]:
    """Return the columns of a list, each with its header first."""
    try:
        if not table.is_file() or table.stat().st_size > _MAX_BYTES:
            return []
        if table.suffix.lower() in (".csv", ".tsv"):
            rows: Iterable[Sequence[str]] = [row for _, row in read_rows(table, "id,abnormal")]
        else:
            text = table.read_text(encoding="utf-8-sig")
            is_json = table.suffix.lower() == ".json"
            rows = _json_rows(json.loads(text)) if is_json else [[], *(line.split() for line in text.splitlines())]
    except (OSError, ValueError, RecursionError, DataError):
        return []
    return list(zip_longest(*rows, fillvalue=""))


def _json_rows(content: Any) -> list[list[str]]:
    """Return rows of {image: label}, or of a list of objects with equal keys."""
    if isinstance(content, dict):
        return [["", "label"], *([key, str(value)] for key, value in content.items())]
    objects = [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []
    keys = list(objects[0]) if objects else []
    return [keys, *([str(each.get(key, "")) for key in keys] for each in objects)] if keys else []
