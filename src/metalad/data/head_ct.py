"""Read and split images with labels in a CSV file, as in the Head CT hemorrhage data set (F. Kitamura)."""

from collections.abc import Sequence
from pathlib import Path

from metalad.data.listing import in_order, list_notes, products_in, read_rows
from metalad.data.names import hints, role
from metalad.data.sample import GOOD, Sample
from metalad.data.splitting import hold_out
from metalad.runtime.errors import DataError

LABELS = "labels.csv"
_NO_DEFECT_NAMES = frozenset({"", "class", "label", "target"})
_AMBIGUOUS = frozenset(
    {"decision", "grade", "quality", "result", "state", "status", "verdict"}
    | {"valid", "validity", "判定", "結果", "结果", "検査結果", "品質", "质量"}
)

Split = tuple[tuple[Sample, ...], tuple[Sample, ...], tuple[str, ...]]
"""Training images, test images, and lines about what was found."""


def read_labelled(root: Path, seed: int) -> Split:
    """Read `root/labels.csv` and split the images into (train, test), both sorted by path, and return notes with them.

    The first column identifies an image: its path, its name with or without suffix, or its number, zero-padded or not.
    The second is 0 or 1. If its header is good or a synonym, such as OK or normal, 1 is good; otherwise 1 is anomalous,
    and the header is the name of the defect type. Identical files are assigned to the same part. Rows without an image
    and images that are not listed are counted in the notes.

    Raises:
        DataError: the file is malformed, its header is ambiguous, an image's name is ambiguous, no row has an image, or
            fewer than two images are good.
    """
    listing = root / LABELS
    rows = read_rows(listing, "id,abnormal")
    defect, good_value = _meaning(listing, rows[0][1])
    samples, notes = _read_samples(root, rows[1:], defect, good_value)
    good = [sample for sample in samples if not sample.abnormal]
    anomalous = [sample for sample in samples if sample.abnormal]
    if len(good) < 2:
        hint = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(f"{listing} labels {len(good)} images as good ({good_value}), but at least 2 are needed{hint}")
    return *hold_out(good, anomalous, seed, listing), notes


def _read_samples(
    root: Path, rows: Sequence[tuple[int, list[str]]], defect: str, good_value: str
) -> tuple[list[Sample], tuple[str, ...]]:
    listing = root / LABELS
    meaning = "0 (anomalous) or 1 (good)" if good_value == "1" else "0 (good) or 1 (anomalous)"
    images = _index_images(root)
    samples: dict[Path, Sample] = {}
    missing: list[str] = []
    for line, row in rows:
        location = f"{listing}, line {line}"
        if len(row) < 2 or row[1] not in ("0", "1"):
            raise DataError(f"{location}: needs an image and {meaning}; found {','.join(row)}")
        path = _find_image(images, row[0], location)
        if path is None:
            missing.append(f"{location}: no image named {row[0]!r} in the folder images or in the folder of the list")
            continue
        if path in samples:
            raise DataError(f"{location}: {path.name} is listed twice; remove one of the two lines")
        abnormal = row[1] != good_value
        samples[path] = Sample(path, abnormal, defect if abnormal else GOOD)
    if not samples:
        raise DataError(missing[0])
    unlisted = sorted({path for paths in images.values() for path in paths} - set(samples))
    return list(in_order(samples.values())), list_notes(listing, len(missing), unlisted)


def _meaning(listing: Path, heading: list[str]) -> tuple[str, str]:
    """Return the name of the defect type, and the value of good images, from the header of the list."""
    if len(heading) < 2 or heading[1] in ("0", "1"):
        raise DataError(
            f"{listing}, line 1: needs a header of two columns separated by a comma, such as id,abnormal; "
            f"found {','.join(heading)}"
        )
    name = heading[1]
    if role(name) == "good":
        return "abnormal", "1"
    if "good" in hints(name) or name.casefold() in _AMBIGUOUS:
        raise DataError(
            f"{listing}, line 1: the header {name} does not state whether 1 means good or anomalous; "
            "name the column good or abnormal"
        )
    return ("abnormal" if name.lower() in _NO_DEFECT_NAMES else name), "0"


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
    matches = images.get(name) or images.get(f"#{_number(name)}") or []
    if len(matches) > 1:
        raise DataError(f"{location}: {name!r} matches {matches[0].name} and {matches[1].name}; list the paths")
    return matches[0] if matches else None


def _number(name: str) -> str:
    """Return the name without leading zeros if it is a number, else unchanged."""
    return (name.lstrip("0") or "0") if name.isascii() and name.isdecimal() else name
