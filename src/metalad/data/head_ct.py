"""Read and split images with labels in a CSV file, as in the Head CT hemorrhage data set (F. Kitamura)."""

from collections.abc import Sequence
from pathlib import Path

from metalad.data.labels import LabelColumn
from metalad.data.listing import in_order, list_notes, products_in
from metalad.data.sample import GOOD, Sample
from metalad.data.splitting import hold_out
from metalad.data.tables import Row, read_rows
from metalad.data.walking import is_image_name
from metalad.runtime.errors import DataError

LABELS = "labels.csv"

Split = tuple[tuple[Sample, ...], tuple[Sample, ...], tuple[str, ...]]
"""Training images, test images, and lines about what was found."""


def find_listing(root: Path) -> Path | None:
    """Return the list of a folder, `labels.csv` in any case; None if there is none.

    Raises:
        DataError: several files have that name.
    """
    if (root / LABELS).is_file():
        return root / LABELS
    found = sorted(path for path in root.iterdir() if path.name.casefold() == LABELS and path.is_file())
    if len(found) > 1:
        raise DataError(f"{root} contains {found[0].name} and {found[1].name}; remove one of them")
    return found[0] if found else None


def read_labelled(root: Path, listing: Path, seed: int) -> Split:
    """Read a list of labeled images and split the images into (train, test), both sorted by path, with notes.

    The first column identifies an image: its path, its name with or without suffix, or its number, zero-padded or not.
    The second states whether it is good, see `metalad.data.labels`. Identical files are assigned to the same part. Rows
    without an image and images that are not listed are counted in the notes.

    Raises:
        DataError: the file is malformed, its header is ambiguous, an image's name is ambiguous, no row has an image, or
            fewer than two images are good.
    """
    (_, heading), *rows = read_rows(listing, "id,abnormal")
    _require_header(listing, heading)
    values = [row[1] for _, row in rows if len(row) > 1]
    column = LabelColumn.of(heading[1], values)
    column.require_meaning(listing, values)
    samples, notes = _read_samples(root, listing, rows, column)
    note = column.note(listing, values, samples)
    notes = notes if note is None else (note, *notes)
    good = [sample for sample in samples if not sample.abnormal]
    anomalous = [sample for sample in samples if sample.abnormal]
    if len(good) < 2:
        hint = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(f"{listing} labels {len(good)} images as good, but at least 2 are needed{hint}")
    return *hold_out(good, anomalous, seed, listing), notes


def _read_samples(
    root: Path, listing: Path, rows: Sequence[Row], column: LabelColumn
) -> tuple[list[Sample], tuple[str, ...]]:
    images = _index_images(root)
    samples: dict[Path, Sample] = {}
    missing: list[str] = []
    for line, row in rows:
        location = f"{listing}, line {line}"
        defect = column.defect(row[1]) if len(row) > 1 else None
        if defect is None:
            raise DataError(f"{location}: needs an image and {column.expected}; found {','.join(row)}")
        path = _find_image(images, row[0], location)
        if path is None:
            missing.append(f"{location}: no image named {row[0]!r} in the folder images or in the folder of the list")
            continue
        if path in samples:
            raise DataError(f"{location}: {path.name} is listed twice; remove one of the two lines")
        samples[path] = Sample(path, defect != GOOD, defect)
    if not samples:
        raise DataError(missing[0])
    unlisted = sorted({path for paths in images.values() for path in paths} - set(samples))
    return list(in_order(samples.values())), list_notes(listing, len(missing), unlisted)


def _require_header(listing: Path, heading: Sequence[str]) -> None:
    if len(heading) < 2 or heading[1] in ("0", "1") or is_image_name(heading[0]):
        raise DataError(
            f"{listing}, line 1: needs a header of two columns separated by a comma, such as id,abnormal; "
            f"found {','.join(heading)}"
        )


def _index_images(root: Path) -> dict[str, list[Path]]:
    """Return the images by all names that identify them in the list."""
    folder = root / "images" if (root / "images").is_dir() else root
    index: dict[str, list[Path]] = {}
    for path in products_in(folder):
        names = {f"#{_number(path.stem)}", path.name, path.stem}
        for base in (root, folder):
            names |= {path.relative_to(base).as_posix(), path.relative_to(base).with_suffix("").as_posix()}
        for name in names:
            index.setdefault(name, []).append(path)
    return index


def _find_image(images: dict[str, list[Path]], name: str, location: str) -> Path | None:
    slashed = name.replace("\\", "/")
    last = slashed.rpartition("/")[2]  # a path on another machine
    matches = images.get(name) or images.get(f"#{_number(name)}") or images.get(slashed) or images.get(last) or []
    if len(matches) > 1:
        raise DataError(f"{location}: {name!r} matches {matches[0].name} and {matches[1].name}; list the paths")
    return matches[0] if matches else None


def _number(name: str) -> str:
    """Return the name without leading zeros if it is a number, else unchanged."""
    return (name.lstrip("0") or "0") if name.isascii() and name.isdecimal() else name
