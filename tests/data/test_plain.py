"""Folders without a known layout: names that tell images apart are refused, with the folder to give instead."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalad.data import read_category
from metalad.runtime.errors import DataError
from tests.data.folders import put_image, put_mask

TO_TRAIN = "; to train, give "
REFUSED = {
    "normal/1.png abnormal/1.png mask/1.png": "normal;",
    "OK/1.png NG/1.png": "OK;",
    "ok/a/1.png ok/b/2.png nok/1.png": "ok;",
    "良品/1.png 不良/1.png": "良品;",
    "gut/1.png schlecht/1.png": "gut;",
    "bon/1.png mauvais/1.png": "bon;",
    "buono/1.png difettoso/1.png": "buono;",
    "bueno/1.png rechazado/1.png": "bueno;",
    "camera1_OK/1.png camera1_NG/1.png": "camera1_OK;",
    "pass/1.png fail/1.png": "pass;",
    "good/1.png crack/1.png": "good;",
    "OK/1.png 2.png": "OK;",
    "train/1.png val/1.png": "train if all images there are good;",
    "Train/1.png Test/1.png": "Train if all images there are good;",
    "images/1.png masks/1.png": "images if all images there are good;",
    "img/1.png labels/1.png": "img if all images there are good;",
    "2024/line1/OK/1.png 2024/line1/NG/1.png": "2024/line1/OK;",
    "a/OK/1.png b/OK/1.png b/NG/1.png": r"a/OK \(or 1 other folder like it\);",
    "NG/1.png": "a folder with good images only;",
    "Referenz/1.png Kratzer/2.png": "Referenz if all images there are good;",
    "Teile_ohne_Befund/1.png Teile_mit_Befund/2.png": "Teile_ohne_Befund;",
    "sin_fallo/1.png con_fallo/2.png": "sin_fallo;",
    "boas/1.png riscadas/2.png": "boas;",
    "treino/1.png teste/2.png": "treino if all images there are good;",
    "conforme/1.png não_conforme/2.png": "conforme;",
    "test_1/1.png Validation/2.png": "a folder with good images only;",
}


def put(root: Path, names: str) -> Path:
    for seed, name in enumerate(names.split()):
        put_image(root / name, seed)
    return root


@pytest.mark.parametrize("names", REFUSED)
def test_names_that_tell_images_apart_are_refused_with_the_folder_to_give(tmp_path: Path, names: str) -> None:
    root = put(tmp_path / "DATA", names)
    text = REFUSED[names]
    where = "" if text.startswith("a folder") else f"{root}/"
    with pytest.raises(DataError, match=TO_TRAIN + where + text) as caught:
        read_category(root)
    assert str(caught.value).startswith(f"{root} contains images")
    assert "--all-good" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (
            "0001_OK.png 0002_NG.png 0003_OK.png",
            r"good and anomalous images by their file names \(0001_OK.png, 0002_NG.png",
        ),
        ("good_1.png scratch_1.png", r"good and anomalous images by their file names \(good_1.png, scratch_1.png"),
        ("gut_1.png Kratzer_1.png", r"\(gut_1.png, Kratzer_1.png"),
        ("P001.png P001_defect.png P002.png", r"\(P001.png, P001_defect.png"),
        ("NG_1.png NG_2.png", r"only anomalous images by their file names \(NG_1.png\)"),
    ],
)
def test_file_names_of_anomalous_images_are_refused(tmp_path: Path, names: str, named: str) -> None:
    root = put(tmp_path, names)
    with pytest.raises(DataError, match=f"{named}.*--all-good"):
        read_category(root)
    assert len(read_category(root, all_good=True).train) == len(names.split())


def test_file_names_of_good_images_are_accepted(tmp_path: Path) -> None:
    assert len(read_category(put(tmp_path, "1_OK.png 2_OK.png 3_side.png no_defect_4.png")).train) == 4


@pytest.mark.parametrize("pair", ["positive negative", "True False", "clean dirty", "class_0 class_1", "陽性 陰性"])
def test_folders_named_as_opposites_are_refused(tmp_path: Path, pair: str) -> None:
    first, second = pair.split()
    root = put(tmp_path / "DATA", f"cam/{first}/1.png cam/{second}/2.png")
    with pytest.raises(DataError, match=f"folders named {first} and {second}, which may tell good .*--all-good"):
        read_category(root)
    assert len(read_category(root / "cam" / first).train) == 1


@pytest.mark.parametrize("names", REFUSED)
def test_all_good_takes_all_images_of_a_refused_folder(tmp_path: Path, names: str) -> None:
    category = read_category(put(tmp_path, names), all_good=True)
    assert (category.layout, len(category.train), category.test) == ("folder", len(names.split()), ())


ACCEPTED = (
    "1.png 2.png",
    "camera1/1.png camera2/2.png",
    "OK/1.png OK/a/2.png",
    "line1/OK/1.png line2/OK/1.png",
    "training/1.png",
    "test_bench_3/1.png",
    "label_printer/1.png label_printer/2.png",
    "passat/1.png goodyear/2.png",
)


@pytest.mark.parametrize("names", ACCEPTED)
def test_names_that_do_not_tell_images_apart_are_accepted(tmp_path: Path, names: str) -> None:
    category = read_category(put(tmp_path, names))
    assert (category.layout, len(category.train)) == ("folder", len(names.split()))


@pytest.mark.parametrize("prefix", ["", "factory/", "a/b/"])
def test_a_root_above_categories_is_refused_with_their_folders(tmp_path: Path, prefix: str) -> None:
    put(
        tmp_path,
        " ".join(f"{prefix}{name}/{part}" for name in ("nut", "tile") for part in ("train/good/1.png", "test/x/1.png")),
    )
    with pytest.raises(DataError, match=f"give one of them: {prefix}nut, {prefix}tile$"):
        read_category(tmp_path)


def test_the_number_of_images_of_each_subfolder_is_noted(tmp_path: Path) -> None:
    names = ["0.png", *(f"cam{folder:02}/{image}.png" for folder in range(12) for image in range(folder + 1))]
    (note,) = read_category(put(tmp_path, " ".join(names))).train_notes
    assert note.startswith(f"79 images below {tmp_path}, all taken as good: 12 in cam11, 11 in cam10, 10 in cam09,")
    assert note.endswith("3 in cam02, 4 in 3 other subfolders")
    assert read_category(put(tmp_path / "flat", "1.png 2.png")).train_notes == ()


def test_masks_beside_images_are_no_training_images(tmp_path: Path) -> None:
    put(tmp_path, "000.png 001.png 001_front.png")
    Image.fromarray(np.zeros((12, 10), np.uint8)).save(tmp_path / "000_mask.png")
    category = read_category(tmp_path)
    assert [sample.path.name for sample in category.train] == ["000.png", "001.png", "001_front.png"]
    assert category.train_notes == ("1 mask left out",)
    put_mask(tmp_path / "001_mask.png")
    with pytest.raises(DataError, match=r"001_mask\.png marks an anomaly in 001\.png, so .* not all good"):
        read_category(tmp_path)
    assert len(read_category(tmp_path, all_good=True).train) == 3


def test_a_folder_of_masks_only_is_refused(tmp_path: Path) -> None:
    put_mask(tmp_path / "ground_truth/1.png")
    with pytest.raises(
        DataError, match=r"all 1 image in .*ground_truth are masks; give a folder of images of products"
    ):
        read_category(tmp_path / "ground_truth")


def test_a_photograph_with_the_name_of_a_mask_is_an_image(tmp_path: Path) -> None:
    put(tmp_path, "bottle.png bottle_label.png")
    assert len(read_category(tmp_path).train) == 2
