"""Layouts of published data sets; each is detected by its folder names, and the published split is used.

Anomalous images of a published training set are used neither for training nor for testing.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from metalad.data.images import read_mask
from metalad.data.listing import (
    good_samples,
    images_in,
    in_order,
    list_notes,
    mask_files,
    mask_folders,
    samples_by_defect,
    subfolder_named,
    subfolders,
)
from metalad.data.mvtec import find_parts, read_test, read_train
from metalad.data.sample import GOOD, Sample
from metalad.data.splitting import hold_out
from metalad.data.tables import read_rows
from metalad.runtime.errors import DataError

DEFECT = "defect"
VISA_SPLIT = Path("split_csv", "1cls.csv")
_VISA_HEADING = ["object", "split", "label", "image", "mask"]
_KOLEKTOR_ITEM = re.compile(r"kos\d+")
_TILES = "MT_"

Folders = Sequence[str]
"""Names of the subfolders of a category, with exact case even on case-insensitive file systems."""


class Listing(NamedTuple):
    """The samples of a category; see `Category`."""

    train: tuple[Sample, ...] = ()
    test: tuple[Sample, ...] = ()
    validation: tuple[Sample, ...] = ()
    left_out: tuple[Sample, ...] = ()
    train_notes: tuple[str, ...] = ()
    test_notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OwnLayout:
    """The layout of a published data set.

    fits: returns whether a folder with the given subfolders has this layout.
    read: lists the samples; the seed is used if no split was published.
    truth: the folder of masks with a subfolder for each defect type, relative to the category; None if there is none.
    """

    name: str
    fits: Callable[[Path, Folders], bool]
    read: Callable[[Path, int], Listing]
    truth: str | None = None


def own_layout(root: Path) -> OwnLayout | None:
    """Return the published layout of a category's folder, or None.

    Raises:
        OSError: the folder cannot be read.
    """
    folders = subfolders(root)
    return next((layout for layout in _LAYOUTS if layout.fits(root, folders)), None)


# MVTec AD 2: train/good, validation/good, test_public/{good,bad}, test_public/ground_truth/bad/STEM_mask.png


def _is_mvtec_2(_: Path, folders: Folders) -> bool:
    return "test_public" in folders


def _read_mvtec_2(root: Path, _: int) -> Listing:
    test, truth = root / "test_public", "ground_truth"
    return Listing(
        good_samples(images_in(root / "train" / GOOD)),
        samples_by_defect(test, lambda defect: mask_files(subfolder_named(test / truth, defect)), ignored=truth),
        good_samples(images_in(root / "validation" / GOOD)),
    )


# MVTec LOCO AD: like MVTec AD, with validation/good and one folder of masks per image, ground_truth/DEFECT/STEM;
# copies with one mask per image, named as in MVTec AD, are read as well


def _is_loco(root: Path, _: Folders) -> bool:
    return any((root / "test" / f"{kind}_anomalies").is_dir() for kind in ("logical", "structural"))


def _read_loco(root: Path, _: int) -> Listing:
    return Listing(
        good_samples(images_in(root / "train" / GOOD)),
        samples_by_defect(root / "test", lambda defect: mask_folders(subfolder_named(root / "ground_truth", defect))),
        good_samples(images_in(root / "validation" / GOOD)),
    )


# BTAD: train/ok, test/{ok,ko}, ground_truth/ko


def _is_btad(root: Path, _: Folders) -> bool:
    return (root / "train" / "ok").is_dir() or all((root / "test" / name).is_dir() for name in ("ok", "ko"))


def _read_btad(root: Path, _: int) -> Listing:
    parts = find_parts(root)
    return Listing() if parts is None else Listing(read_train(parts), read_test(parts))


# VisA: Data/Images/{Normal,Anomaly}, Data/Masks/Anomaly; the split is in ../split_csv/1cls.csv


def _is_visa(root: Path, _: Folders) -> bool:
    return any((root / "Data" / "Images" / name).is_dir() for name in ("Normal", "Anomaly"))


def _read_visa(root: Path, _: int) -> Listing:
    root = root.absolute()
    split = root.parent / VISA_SPLIT
    if not split.is_file():
        raise DataError(
            f"no file {split}, which lists the training images of {root.name}; copy it from the VisA archive"
        )
    rows = read_rows(split, ",".join(_VISA_HEADING))
    if rows[0][1] != _VISA_HEADING:
        raise DataError(f"{split}, line 1: needs the header {','.join(_VISA_HEADING)}; found {','.join(rows[0][1])}")
    present = set(images_in(root / "Data"))
    train: list[Sample] = []
    test: list[Sample] = []
    own = [(line, row) for line, row in rows[1:] if row[0] == root.name]
    for line, row in own:
        _check_visa_row(f"{split}, line {line}", row)
        abnormal = row[2] == "anomaly"
        image, mask = (root.parent / name if name else None for name in row[3:])
        if image in present:  # a copy may be incomplete; `datasets` reports the missing images
            sample = Sample(image, abnormal, "anomaly" if abnormal else GOOD, mask if mask in present else None)
            (train if row[1] == "train" else test).append(sample)
    listed = {sample.path for sample in (*train, *test)}
    images = images_in(root / "Data" / "Images")
    notes = list_notes(split, len(own) - len(listed), [path for path in images if path not in listed])
    return Listing(in_order(train), in_order(test), train_notes=notes, test_notes=notes)


def _check_visa_row(location: str, row: Sequence[str]) -> None:
    fits = len(row) == len(_VISA_HEADING) and row[1] in ("train", "test") and row[2] in ("normal", "anomaly")
    if not fits or row[1:3] == ["train", "anomaly"]:
        raise DataError(
            f"{location}: needs train or test, normal or anomaly (only in test), an image, and its mask or nothing; "
            f"found {','.join(row)}"
        )


# KolektorSDD: kosNN/PartN.jpg, PartN_label.bmp; the mask is black if there is no defect


def _is_kolektor(_: Path, folders: Folders) -> bool:
    return any(_KOLEKTOR_ITEM.fullmatch(name) for name in folders)


def _read_kolektor(root: Path, seed: int) -> Listing:
    items = [root / name for name in subfolders(root) if _KOLEKTOR_ITEM.fullmatch(name)]
    paths = [path for item in items for path in images_in(item)]
    return _split(root, _labelled_by_masks(paths, "_label", ".bmp"), seed)


# KolektorSDD2: {train,test}/NNNNN.png, NNNNN_GT.png; the mask is black if there is no defect


def _is_kolektor_2(root: Path, folders: Folders) -> bool:
    parts = [root / name for name in ("train", "test") if name in folders]
    return any(path.name.endswith("_GT.png") for part in parts for path in part.iterdir())


def _read_kolektor_2(root: Path, _: int) -> Listing:
    train, test = (_labelled_by_masks(images_in(root / name), "_GT", ".png") for name in ("train", "test"))
    return Listing(_good(train), test, left_out=_anomalous(train))


# Magnetic tile defects: MT_DEFECT/Imgs/STEM.jpg with the mask STEM.png in the same folder; MT_Free is good


def _is_tiles(root: Path, folders: Folders) -> bool:
    return any(name.startswith(_TILES) and (root / name / "Imgs").is_dir() for name in folders)


def _read_tiles(root: Path, seed: int) -> Listing:
    samples: list[Sample] = []
    for name in subfolders(root):
        paths = images_in(root / name / "Imgs") if name.startswith(_TILES) else []
        masks = {path for path in paths if path.suffix == ".png"}
        defect = GOOD if name == "MT_Free" else name.removeprefix(_TILES).lower()
        for path in paths:
            mask = path.with_suffix(".png")
            if path not in masks:
                truth = mask if defect != GOOD and mask in masks else None
                samples.append(Sample(path, defect != GOOD, defect, truth))
    return _split(root, samples, seed)


# DAGM 2007: {Train,Test}/NNNN.PNG, {Train,Test}/Label/NNNN_label.PNG of anomalous images, and Label/Labels.txt


def _is_dagm(root: Path, folders: Folders) -> bool:
    return any((root / name / "Label").is_dir() for name in folders if name in ("Train", "Test"))


def _read_dagm(root: Path, _: int) -> Listing:
    train, test = (_read_dagm_part(root / name) for name in ("Train", "Test"))
    return Listing(_good(train), test, left_out=_anomalous(train))


def _read_dagm_part(folder: Path) -> tuple[Sample, ...]:
    masks, listed = mask_files(folder / "Label"), _listed_as_anomalous(folder / "Label" / "Labels.txt")
    samples = []
    for path in images_in(folder):
        if path.parent == folder:
            mask = masks.get(f"{path.stem}_label")
            abnormal = mask is not None or path.name.lower() in listed
            samples.append(Sample(path, abnormal, DEFECT if abnormal else GOOD, mask))
    return tuple(samples)


def _listed_as_anomalous(labels: Path) -> frozenset[str]:
    """Return the lower-case names of the images that are labeled anomalous; empty without the file.

    Columns: number, 1 (anomalous) or 0, image. Some copies of the data set do not contain the file.
    """
    if not labels.is_file():
        return frozenset()
    rows = [line.split() for line in labels.read_text(encoding="utf-8", errors="replace").splitlines()]
    return frozenset(row[2].lower() for row in rows if len(row) > 2 and row[1] == "1")


def _good(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    return tuple(sample for sample in samples if not sample.abnormal)


def _anomalous(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    return tuple(sample for sample in samples if sample.abnormal)


def _split(root: Path, samples: Sequence[Sample], seed: int) -> Listing:
    return Listing(*hold_out(_good(samples), _anomalous(samples), seed, root))


def _labelled_by_masks(paths: Sequence[Path], ending: str, suffix: str) -> tuple[Sample, ...]:
    """Return samples of images that all have a mask in the same folder; an image is good if its mask is empty.

    Raises:
        DataError: an image has no mask, or a mask cannot be read.
    """
    present = set(paths)
    images = [path for path in paths if not path.stem.endswith(ending)]
    masks = [path.with_name(f"{path.stem}{ending}{suffix}") for path in images]
    for path, mask in zip(images, masks, strict=True):
        if mask not in present:
            raise DataError(f"no mask {mask.name} for {path}, so its label is unknown; copy the data set again")
    with ThreadPoolExecutor() as pool:
        anomalous = list(pool.map(_is_not_empty, masks))
    return tuple(
        Sample(path, True, DEFECT, mask) if is_anomalous else Sample(path, False, GOOD)
        for path, mask, is_anomalous in zip(images, masks, anomalous, strict=True)
    )


def _is_not_empty(mask: Path) -> bool:
    return bool(read_mask(mask).any())


_LAYOUTS = (
    OwnLayout("mvtec-ad-2", _is_mvtec_2, _read_mvtec_2, "test_public/ground_truth"),
    OwnLayout("mvtec-loco", _is_loco, _read_loco, "ground_truth"),
    OwnLayout("btad", _is_btad, _read_btad, "ground_truth"),
    OwnLayout("visa", _is_visa, _read_visa),
    OwnLayout("kolektor-sdd", _is_kolektor, _read_kolektor),
    OwnLayout("kolektor-sdd2", _is_kolektor_2, _read_kolektor_2),
    OwnLayout("magnetic-tile", _is_tiles, _read_tiles),
    OwnLayout("dagm", _is_dagm, _read_dagm),
)
