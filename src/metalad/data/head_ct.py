"""Read and split images with labels in a CSV file, as in the Head CT hemorrhage data set (F. Kitamura)."""

from pathlib import Path

from metalad.data.images import find_images
from metalad.data.listing import in_order, read_rows
from metalad.data.sample import GOOD, Sample
from metalad.data.splitting import hold_out
from metalad.runtime.errors import DataError

LABELS = "labels.csv"
_NO_DEFECT_NAMES = frozenset({"", GOOD, "class", "label", "target"})


def read_labelled(root: Path, seed: int) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Read `root/labels.csv` and split the images into (train, test), both sorted by path.

    The first column identifies an image: its path, its name with or without suffix, or its number, zero-padded or not.
    The second is 0 (good) or 1 (anomalous); its header is the name of the defect type. Identical files are assigned to
    the same part.

    Raises:
        DataError: the file is malformed, an image is missing or its name is ambiguous, or fewer than two images are
            good.
    """
    samples = _read_samples(root)
    good = [sample for sample in samples if not sample.abnormal]
    anomalous = [sample for sample in samples if sample.abnormal]
    if len(good) < 2:
        raise DataError(f"{root / LABELS} labels {len(good)} images as good (0), but at least 2 are needed")
    return hold_out(good, anomalous, seed, root / LABELS)


def _read_samples(root: Path) -> list[Sample]:
    listing = root / LABELS
    rows = read_rows(listing, "id,abnormal")
    defect = _defect_name(listing, rows[0][1])
    images = _index_images(root)
    samples: dict[Path, Sample] = {}
    for line, row in rows[1:]:
        location = f"{listing}, line {line}"
        if len(row) < 2 or row[1] not in ("0", "1"):
            raise DataError(f"{location}: needs an image and 0 (good) or 1 (anomalous); found {','.join(row)}")
        path = _find_image(images, row[0], location)
        if path in samples:
            raise DataError(f"{location}: {path.name} is listed twice; remove one of the two lines")
        abnormal = row[1] == "1"
        samples[path] = Sample(path, abnormal, defect if abnormal else GOOD)
    return list(in_order(samples.values()))


def _defect_name(listing: Path, heading: list[str]) -> str:
    if len(heading) < 2 or heading[1] in ("0", "1"):
        raise DataError(
            f"{listing}, line 1: needs a header of two columns separated by a comma, such as id,abnormal; "
            f"found {','.join(heading)}"
        )
    return "abnormal" if heading[1].lower() in _NO_DEFECT_NAMES else heading[1]


def _index_images(root: Path) -> dict[str, list[Path]]:
    """Return the images by all names that identify them in the list."""
    folder = root / "images" if (root / "images").is_dir() else root
    index: dict[str, list[Path]] = {}
    for path in find_images(folder):
        names = {f"#{_number(path.stem)}", path.name, path.stem}
        for base in (root, folder):
            names |= {path.relative_to(base).as_posix(), path.relative_to(base).with_suffix("").as_posix()}
        for name in names:
            index.setdefault(name, []).append(path)
    return index


def _find_image(images: dict[str, list[Path]], name: str, location: str) -> Path:
    matches = images.get(name) or images.get(f"#{_number(name)}") or []
    if not matches:
        raise DataError(f"{location}: no image named {name!r} in the folder images or in the folder of the list")
    if len(matches) > 1:
        raise DataError(f"{location}: {name!r} matches {matches[0].name} and {matches[1].name}; list the paths")
    return matches[0]


def _number(name: str) -> str:
    """Return the name without leading zeros if it is a number, else unchanged."""
    return (name.lstrip("0") or "0") if name.isascii() and name.isdecimal() else name
