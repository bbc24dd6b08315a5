"""Synonyms in the layout of MVTec AD, masks beside images, and masks that fit no image."""

import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from metalad.data import Category, read_category
from metalad.data.images import read_mask
from metalad.runtime.errors import DataError
from tests.data.folders import put_image, put_mask


def put(root: Path, names: str) -> Path:
    for seed, name in enumerate(names.split()):
        put_image(root / name, seed)
    return root


def labels(category: Category) -> Counter[str]:
    return Counter(sample.defect for sample in category.test)


@pytest.mark.parametrize("good", ["good", "Good", "ok", "OK", "normal", "pass", "良品", "no_defect", "gut"])
def test_synonyms_of_good_are_good_test_images(tmp_path: Path, good: str) -> None:
    category = read_category(put(tmp_path, f"train/good/1.png test/{good}/1.png test/{good}/2.png test/crack/1.png"))
    assert labels(category) == {"good": 2, "crack": 1}
    assert {sample.abnormal for sample in category.test if sample.defect == "good"} == {False}


@pytest.mark.parametrize(
    "names",
    [
        "Train/Good/1.png Test/Good/1.png Test/Defect/1.png",
        "train/normal/1.png test/normal/1.png test/abnormal/1.png",
        "TRAIN/OK/1.png TEST/OK/1.png TEST/NG/1.png",
        "training/pass/1.png testing/pass/1.png testing/fail/1.png",
    ],
)
def test_synonyms_of_the_folders_are_read(tmp_path: Path, names: str) -> None:
    category = read_category(put(tmp_path, names))
    assert (category.layout, len(category.train), len(category.test)) == ("mvtec", 1, 2)
    assert sum(sample.abnormal for sample in category.test) == 1


def test_masks_in_a_folder_with_a_synonym_are_found(tmp_path: Path) -> None:
    put(tmp_path, "train/ok/1.png test/ok/1.png test/ng/1.png test/ng/2.png")
    put_mask(tmp_path / "masks/ng/1.png")
    put_mask(tmp_path / "masks/ng/2_mask.png")
    masks = [sample.mask for sample in read_category(tmp_path).test if sample.abnormal]
    assert masks == [tmp_path / "masks/ng/1.png", tmp_path / "masks/ng/2_mask.png"]


def test_training_images_outside_of_the_folder_of_good_ones_are_noted(tmp_path: Path) -> None:
    category = read_category(put(tmp_path, "train/good/1.png train/bad/1.png train/2.png test/bad/1.png test/3.png"))
    assert len(category.train) == len(category.test) == 1
    train, good = tmp_path / "train", tmp_path / "train/good"
    assert category.train_notes == (f"2 images in {train} but not in {good}, not used, such as {train / '2.png'}",)
    assert category.test_notes == (f"1 image in {tmp_path / 'test'} but in no subfolder, not used, such as 3.png",)


def test_images_in_other_folders_of_the_category_are_noted(tmp_path: Path) -> None:
    put(tmp_path, "train/good/1.png test/bad/1.png NG/1.png NG/2.png new/1.png validation/good/1.png")
    put_mask(tmp_path / "ground_truth/bad/1.png")
    note = f"3 images not used, in {tmp_path / 'NG'}, {tmp_path / 'new'}"
    category = read_category(tmp_path)
    assert (category.train_notes, category.test_notes) == ((note,), (note,))


def test_flat_training_images_are_refused_with_their_folder(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png test/good/1.png test/bad/1.png")
    with pytest.raises(DataError, match=f"if they are good, give {tmp_path / 'train'}$"):
        read_category(tmp_path)


def test_masks_beside_test_images_are_ground_truth_and_no_products(tmp_path: Path) -> None:
    put(tmp_path, "train/good/1.png test/good/1.png test/crack/000.png test/crack/001.png")
    for name in ("crack/000_mask", "crack/001_GT", "good/1_mask"):
        put_mask(tmp_path / f"test/{name}.png")
    category = read_category(tmp_path)
    masks = {sample.path.stem: sample.mask and sample.mask.name for sample in category.test}
    assert masks == {"000": "000_mask.png", "001": "001_GT.png", "1": None}
    assert category.test_notes == (
        f"2 masks beside the images, such as {tmp_path / 'test/crack/000_mask.png'}",
        f"1 mask left out, such as {tmp_path / 'test/good/1_mask.png'}",
    )


def test_a_folder_of_masks_among_the_test_images_is_no_defect(tmp_path: Path) -> None:
    put(tmp_path, "train/good/1.png test/good/1.png test/crack/000.png test/label/000.png")
    put_mask(tmp_path / "test/ground_truth/crack/000.png")
    category = read_category(tmp_path)
    assert labels(category) == {"good": 1, "crack": 1, "label": 1}
    assert category.test[0].mask == tmp_path / "test/ground_truth/crack/000.png"


def test_masks_match_if_only_the_unicode_form_differs(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "défaut_é") for form in ("NFC", "NFD"))
    assert composed != decomposed
    put(tmp_path, f"train/good/1.png test/{composed}/{decomposed}.png")
    put_mask(tmp_path / f"ground_truth/{decomposed}/{composed}_mask.png")
    category = read_category(tmp_path)
    assert [sample.mask is not None for sample in category.test] == [True]
    assert category.test_notes == ()


def test_masks_without_an_image_are_counted_and_named(tmp_path: Path) -> None:
    put(tmp_path, "train/good/1.png test/crack/000.png test/crack/001.png")
    put_mask(tmp_path / "ground_truth/crack/000_mask.png")
    for name in ("crack/001_seg.png", "cracks/000_mask.png"):
        put_mask(tmp_path / "ground_truth" / name)
    put_mask(tmp_path / "ground_truth/good/7_mask.png")
    category = read_category(tmp_path)
    (note,) = category.test_notes
    assert note.startswith(
        f"2 masks without an anomalous image, such as {tmp_path / 'ground_truth/crack/001_seg.png'}; "
    )
    assert "must be ground_truth/DEFECT/STEM_mask.png or ground_truth/DEFECT/STEM.png" in note
    assert category.train_notes == ()


def test_masks_of_loco_may_be_named_as_those_of_mvtec_ad(shared_data: Path) -> None:
    category = read_category(shared_data / "mvtec_loco" / "juice_bottle")
    anomalous = [sample for sample in category.test if sample.abnormal]
    assert (category.layout, len(anomalous)) == ("mvtec-loco", 142)
    assert all(sample.mask is not None and sample.mask.stem == f"{sample.path.stem}_mask" for sample in anomalous)
    assert category.test_notes == ()
    mask = anomalous[0].mask
    assert mask is not None
    assert read_mask(mask).any()


def test_both_kinds_of_loco_masks_are_read_and_leftovers_named(tmp_path: Path) -> None:
    defect = "structural_anomalies"
    put(tmp_path, f"train/good/0.png test/good/0.png test/{defect}/000.png test/{defect}/001.png")
    put_mask(tmp_path / f"ground_truth/{defect}/000/000.png")
    put_mask(tmp_path / f"ground_truth/{defect}/001_mask.png")
    put_mask(tmp_path / f"ground_truth/{defect}/002/000.png")
    category = read_category(tmp_path)
    masks = [sample.mask and sample.mask.name for sample in category.test if sample.abnormal]
    assert masks == ["000", "001_mask.png"]
    assert category.test_notes[0].startswith("1 mask without an anomalous image")
    shutil.rmtree(tmp_path / f"ground_truth/{defect}/002")
    assert read_category(tmp_path).test_notes == ()


def test_a_layout_of_btad_with_masks_elsewhere(tmp_path: Path) -> None:
    put(tmp_path, "train/ok/0.png test/ok/0.png test/ko/000.png")
    put_mask(tmp_path / "masks/ko/000.png")
    category = read_category(tmp_path)
    assert (category.layout, labels(category)) == ("btad", {"good": 1, "ko": 1})
    assert np.count_nonzero(read_mask(category.test[0].mask or tmp_path)) == 1


@pytest.mark.parametrize("nested", ["OK", "ok/cam2", "day1/Gut", "良品", "defect-free"])
def test_good_names_below_a_kind_of_defect_are_refused(tmp_path: Path, nested: str) -> None:
    put(tmp_path, f"train/good/1.png test/camera1/{nested}/1.png test/camera1/NG/2.png test/camera1/scratch/3.png")
    where = rf"{tmp_path}/test/camera1/{nested} has the name of good images, but all images in {tmp_path}/test/camera1 "
    with pytest.raises(DataError, match=where + "count as anomalous; move it out of that folder, or rename it"):
        read_category(tmp_path)


@pytest.mark.parametrize("part", ["train/good", "test/good"])
@pytest.mark.parametrize("nested", ["NG", "cam2/Ausschuss", "不良品"])
def test_bad_names_below_good_images_are_refused(tmp_path: Path, part: str, nested: str) -> None:
    put(tmp_path, f"train/good/1.png test/good/1.png test/bad/1.png {part}/{nested}/2.png")
    where = f"{tmp_path}/{part}/{nested} has the name of anomalous images, but all images in {tmp_path}/{part} "
    with pytest.raises(DataError, match=where + "count as good"):
        read_category(tmp_path)


def test_nested_folders_with_other_names_are_of_one_kind(tmp_path: Path) -> None:
    put(
        tmp_path, "train/good/cam1/1.png train/good/OK/2.png test/good/a/1.png test/crack/NG/1.png test/crack/cam/1.png"
    )
    put_mask(tmp_path / "train/good/ground_truth/1.png")
    category = read_category(tmp_path)
    assert (len(category.train), labels(category)) == (2, {"good": 1, "crack": 2})
