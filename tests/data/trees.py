"""Miniatures of the published data sets: 16×16 images in the folders of each, and the expected samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.folders import put_image, put_text

SIZE = (16, 16)
_SEEDS = count()


def put(*paths: Path) -> None:
    """Write images that all differ."""
    for path in paths:
        put_image(path, next(_SEEDS), SIZE)


def put_marks(path: Path, *rows: int, value: int = 255) -> None:
    """Write a mask in which the given rows are anomalous."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(SIZE, np.uint8)
    mask[list(rows)] = value
    Image.fromarray(mask).save(path)


@dataclass(frozen=True)
class Tree:
    """A miniature of a data set, and its expected samples.

    put: writes the miniature into a folder.
    category: folder of the category in the folder of the data set.
    counts: training, validation, good test and anomalous test images, and images that are not used.
    rows: the anomalous rows of the mask of each anomalous test image, by its name.
    """

    put: Callable[[Path], None]
    category: str
    layout: str
    counts: tuple[int, int, int, int, int]
    rows: Mapping[str, tuple[int, ...]]


def _put_mvtec_2(root: Path) -> None:
    can = root / "can"
    put(*(can / "train/good" / f"{n:03}_regular.png" for n in range(3)), can / "validation/good/000_regular.png")
    put(can / "test_public/good/000_regular.png", can / "test_public/bad/000_overexposed.png")
    put(can / "test_private/000_regular.png", can / "test_private_mixed/000_mixed.png")
    put_marks(can / "test_public/ground_truth/bad/000_overexposed_mask.png", 4)


def _put_loco(root: Path) -> None:
    box = root / "breakfast_box"
    put(*(box / "train/good" / f"{n:03}.png" for n in range(3)), box / "validation/good/000.png")
    put(box / "test/good/000.png", box / "test/logical_anomalies/000.png", box / "test/structural_anomalies/000.png")
    put_marks(box / "ground_truth/logical_anomalies/000/000.png", 1, 2, value=253)
    put_marks(box / "ground_truth/logical_anomalies/000/001.png", 9, value=254)
    put_marks(box / "ground_truth/structural_anomalies/000/000.png", 3)


def _put_visa(root: Path) -> None:
    lines = ["object,split,label,image,mask", "pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,"]
    images, masks = "candle/Data/Images", "candle/Data/Masks"
    for number, part in enumerate(("train", "test", "train")):
        put(root / images / f"Normal/{number:04}.JPG")
        lines.append(f"candle,{part},normal,{images}/Normal/{number:04}.JPG,")
    put(root / images / "Anomaly/000.JPG")
    put_marks(root / masks / "Anomaly/000.png", 7, value=3)
    lines.append(f"candle,test,anomaly,{images}/Anomaly/000.JPG,{masks}/Anomaly/000.png")
    put_text(root / "split_csv/1cls.csv", "\r\n".join(lines))


def _put_btad(root: Path) -> None:
    put(*(root / "03/train/ok" / f"{n:04}.bmp" for n in range(2)), root / "03/test/ok/0000.bmp")
    put(root / "03/test/ko/0000.bmp", root / "03/test/ko/0001.bmp")
    put_marks(root / "03/ground_truth/ko/0000.bmp", 5)
    put_marks(root / "03/ground_truth/ko/0001.png", 6)


def _put_kolektor(root: Path) -> None:
    for item in ("kos01", "kos02"):
        for part in range(5):
            put(root / item / f"Part{part}.jpg")
            put_marks(root / item / f"Part{part}_label.bmp", *((8, 9) if part == 2 else ()))


def _put_kolektor_2(root: Path) -> None:
    for part, marked in (("train", (False, True, False)), ("test", (True, False))):
        for number, is_marked in enumerate(marked):
            put(root / part / f"1000{number}.png")
            put_marks(root / part / f"1000{number}_GT.png", *((2,) if is_marked else ()))


def _put_tiles(root: Path) -> None:
    for number in range(10):
        put(root / f"MT_Free/Imgs/exp1_num_{number}.jpg")
        put_marks(root / f"MT_Free/Imgs/exp1_num_{number}.png")
    put(root / "MT_Blowhole/Imgs/exp2_num_1.jpg", root / "MT_Uneven/Imgs/exp2_num_2.jpg")
    put_marks(root / "MT_Blowhole/Imgs/exp2_num_1.png", 11)
    put_marks(root / "MT_Uneven/Imgs/exp2_num_2.png", 12, 13)


def _put_dagm(root: Path) -> None:
    for part, names in (("Train", ("0004", "0005", "0006")), ("Test", ("0001", "0002"))):
        folder = root / "Class1" / part
        put(*(folder / f"{name}.PNG" for name in names))
        put_marks(folder / "Label" / f"{names[-1]}_label.PNG", 10)
        rows = [f"{int(name)}\t{int(name == names[-1])}\t{name}.PNG\t0\t0" for name in names]
        put_text(folder / "Label" / "Labels.txt", "\n".join(["1", *rows]))


TREES: Mapping[str, Tree] = {
    "mvtec2": Tree(_put_mvtec_2, "can", "mvtec-ad-2", (3, 1, 1, 1, 0), {"bad/000_overexposed.png": (4,)}),
    "loco": Tree(
        _put_loco,
        "breakfast_box",
        "mvtec-loco",
        (3, 1, 1, 2, 0),
        {"logical_anomalies/000.png": (1, 2, 9), "structural_anomalies/000.png": (3,)},
    ),
    "visa": Tree(_put_visa, "candle", "visa", (2, 0, 1, 1, 0), {"Anomaly/000.JPG": (7,)}),
    "btad": Tree(_put_btad, "03", "btad", (2, 0, 1, 2, 0), {"ko/0000.bmp": (5,), "ko/0001.bmp": (6,)}),
    "ksdd": Tree(
        _put_kolektor, "", "kolektor-sdd", (6, 0, 2, 2, 0), {"kos01/Part2.jpg": (8, 9), "kos02/Part2.jpg": (8, 9)}
    ),
    "ksdd2": Tree(_put_kolektor_2, "", "kolektor-sdd2", (2, 0, 1, 1, 1), {"test/10000.png": (2,)}),
    "mtd": Tree(
        _put_tiles,
        "",
        "magnetic-tile",
        (8, 0, 2, 2, 0),
        {"Imgs/exp2_num_1.jpg": (11,), "Imgs/exp2_num_2.jpg": (12, 13)},
    ),
    "dagm": Tree(_put_dagm, "Class1", "dagm", (2, 0, 1, 1, 1), {"Test/0002.PNG": (10,)}),
}
"""By the names of the data sets with their own layout."""
