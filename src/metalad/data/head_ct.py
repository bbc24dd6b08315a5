"""Images labelled in a CSV file, as in the Head CT haemorrhage data (F. Kitamura): read it, then split."""

from pathlib import Path

from metalad.data.images import find_images
from metalad.data.listing import in_order, read_rows
from metalad.data.sample import GOOD, Sample
from metalad.data.splitting import hold_out
from metalad.runtime.errors import DataError

LABELS = "labels.csv"
_NO_DEFECT_NAMES = frozenset({"", GOOD, "class", "label", "target"})


def read_labelled(root: Path, seed: int) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Read `root/labels.csv` and split into (train, test), both in the order of their paths.

    The first column names an image: its path, its name without the ending, or its number, zero-padded or not.
    The second is 0 (good) or 1 (abnormal); its heading names the defect. Identical files go to the same side.

    Raises:
        DataError: the list is malformed or names an image that is missing or not unique, or fewer than two
            images are good.
    """
    samples = _read_samples(root)
    good = [sample for sample in samples if not sample.abnormal]
    abnormal = [sample for sample in samples if sample.abnormal]
    if len(good) < 2:
        raise DataError(f"{root / LABELS} labels {len(good)} images good (0), but at least 2 are needed")
    return hold_out(good, abnormal, seed, root / LABELS)


def _read_samples(root: Path) -> list[Sample]:
    listing = root / LABELS
    rows = read_rows(listing, "id,abnormal")
    defect = _defect_name(listing, rows[0][1])
    images = _index_images(root)
    samples: dict[Path, Sample] = {}
    for line, row in rows[1:]:
        where = f"{listing}, line {line}"
        if len(row) < 2 or row[1] not in ("0", "1"):
            raise DataError(f"{where}: needs an image and 0 (good) or 1 (abnormal); found {','.join(row)}")
        path = _find_image(images, row[0], where)
        if path in samples:
            raise DataError(f"{where}: {path.name} was listed before; remove one of the two")
        abnormal = row[1] == "1"
        samples[path] = Sample(path, abnormal, defect if abnormal else GOOD)
    return list(in_order(samples.values()))


def _defect_name(listing: Path, heading: list[str]) -> str:
    if len(heading) < 2 or heading[1] in ("0", "1"):
        raise DataError(
            f"{listing}, line 1: needs a heading of two columns split by a comma, such as id,abnormal; "
            f"found {','.join(heading)}"
        )
    return "abnormal" if heading[1].lower() in _NO_DEFECT_NAMES else heading[1]


def _index_images(root: Path) -> dict[str, list[Path]]:
    """All images under each name by which the list may call them."""
    folder = root / "images" if (root / "images").is_dir() else root
    index: dict[str, list[Path]] = {}
    for path in find_images(folder):
        names = {f"#{_number(path.stem)}", path.name, path.stem}
        for base in (root, folder):
            names |= {path.relative_to(base).as_posix(), path.relative_to(base).with_suffix("").as_posix()}
        for name in names:
            index.setdefault(name, []).append(path)
    return index


def _find_image(images: dict[str, list[Path]], name: str, where: str) -> Path:
    found = images.get(name) or images.get(f"#{_number(name)}") or []
    if not found:
        raise DataError(f"{where}: no image named {name!r}, neither in the folder images nor beside the list")
    if len(found) > 1:
        raise DataError(f"{where}: {name!r} may mean {found[0].name} or {found[1].name}; list the images by path")
    return found[0]


def _number(name: str) -> str:
    """The name without leading zeros if it is a number, else as it is."""
    return (name.lstrip("0") or "0") if name.isascii() and name.isdecimal() else name
