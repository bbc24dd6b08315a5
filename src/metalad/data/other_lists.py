"""Tables beside the images that are not `labels.csv`, and may tell good images from anomalous ones."""

from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

from metalad.data.labels import LabelColumn
from metalad.data.names import role
from metalad.data.tables import read_rows
from metalad.runtime.errors import DataError

_TEXT_TABLES = (".csv", ".tsv")
_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_MAX_BYTES = 16_000_000
_AS_LABELS = "save it as labels.csv, with two columns, image and label; if all images are good, add --all-good"


def check_other_lists(root: Path, images: Iterable[Path]) -> str | None:
    """Describe the tables in a folder that list its images and are not read; None without any.

    Raises:
        DataError: a table states which images are good, or its name is that of labels.
    """
    names = {name for image in images for name in (image.name, image.stem, image.relative_to(root).as_posix())}
    names -= set("0123456789")  # more often labels than names
    listed: list[Path] = []
    for table in sorted(path for path in root.iterdir() if path.suffix.lower() in (*_TEXT_TABLES, *_SPREADSHEETS)):
        if table.suffix.lower() in _SPREADSHEETS:
            if role(table.stem) == "mask":
                raise DataError(f"{table} is not read; {_AS_LABELS} (in Python all_good=True)")
            continue
        columns = _columns(table)
        if not any(_lists_images(column, names) for column in columns):
            continue
        for heading, *values in columns:
            if LabelColumn.of(heading, values).tells_apart(values):
                raise DataError(
                    f"{table} states in its column {heading} which images are good, but is not read; {_AS_LABELS} "
                    "(in Python all_good=True)"
                )
        listed.append(table)
    return f"{listed[0]} lists images, but only labels.csv is read" if listed else None


def _lists_images(column: Sequence[str], names: Collection[str]) -> bool:
    """Return whether at least half of the values below a header name images."""
    values = [value for value in column[1:] if value]
    found = sum(value in names or value.replace("\\", "/").rpartition("/")[2] in names for value in values)
    return found > 0 and 2 * found >= len(values)


def _columns(table: Path) -> Sequence[Sequence[str]]:
    try:
        if table.stat().st_size > _MAX_BYTES:
            return []
        rows = [row for _, row in read_rows(table, "id,abnormal")]
    except (OSError, DataError):
        return []
    return list(zip_longest(*rows, fillvalue=""))
