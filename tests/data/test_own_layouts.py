"""The published layouts, tested on miniatures."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from metalad.data import Category, data_hash, read_category
from metalad.data.images import read_mask
from metalad.methods.variation_model import VariationModelConfig
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.train import train
from metalad.runtime.errors import DataError, ImageError
from tests.data.folders import put_image, put_text
from tests.data.trees import SIZE, TREES, put_marks


def read(tmp_path: Path, name: str, seed: int = 0) -> Category:
    tree = TREES[name]
    tree.put(tmp_path / name)
    return read_category(tmp_path / name / tree.category, seed=seed)


@pytest.mark.parametrize("name", TREES)
def test_samples_labels_and_masks_are_read_correctly(tmp_path: Path, name: str) -> None:
    category, tree = read(tmp_path, name), TREES[name]
    assert (category.name, category.layout) == (tree.category or name, tree.layout)
    anomalous = [sample for sample in category.test if sample.abnormal]
    good = [sample for sample in category.test if not sample.abnormal]
    parts = (category.train, category.validation, good, anomalous, category.left_out)
    assert tuple(map(len, parts)) == tree.counts
    assert {(sample.abnormal, sample.defect, sample.mask) for part in parts[:3] for sample in part} == {
        (False, "good", None)
    }
    assert all(sample.abnormal and sample.defect != "good" for sample in (*anomalous, *category.left_out))
    assert {sample.name for sample in anomalous} == set(tree.rows)
    for sample in anomalous:
        assert sample.mask is not None
        expected = np.zeros(SIZE, bool)
        expected[list(tree.rows[sample.name])] = True
        np.testing.assert_array_equal(read_mask(sample.mask, SIZE), expected)


@pytest.mark.parametrize("name", TREES)
def test_images_are_listed_once_and_masks_are_not_listed(tmp_path: Path, name: str) -> None:
    category = read(tmp_path, name)
    paths = [
        sample.path
        for part in (category.train, category.validation, category.test, category.left_out)
        for sample in part
    ]
    assert len(set(paths)) == len(paths)
    # The names of masks and private images contain these words.
    assert not [path for path in paths if any(word in path.stem for word in ("mask", "label", "GT"))]
    assert not [path for path in paths if "private" in str(path)]


@pytest.mark.parametrize("name", ["ksdd", "mtd"])
def test_data_sets_without_a_published_split_are_split_by_the_seed(tmp_path: Path, name: str) -> None:
    category = read(tmp_path, name)
    root = category.root
    assert read_category(root) == category
    splits = {tuple(sample.path for sample in read_category(root, seed=seed).train) for seed in range(6)}
    assert len(splits) > 1


@pytest.mark.parametrize("name", ["mvtec2", "visa", "btad", "ksdd2", "dagm"])
def test_the_seed_does_not_change_a_published_split(tmp_path: Path, name: str) -> None:
    category = read(tmp_path, name)
    assert read_category(category.root, seed=5) == category


@pytest.mark.parametrize("name", ["loco", "ksdd"])
def test_published_folders_can_be_used_for_training_and_evaluation(tmp_path: Path, name: str) -> None:
    category = read(tmp_path, name)
    model = train(category.root, tmp_path / "run", method=VariationModelConfig(image_size=(32, 32)))
    assert sum(model.header.images.values()) == len(category.train)
    report = evaluate(model, category.root)
    assert len(report.images) == len(category.test)
    assert report.chosen.metrics_original.pixel_auroc is not None


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if tree.category])
def test_the_folder_of_a_whole_data_set_is_rejected(tmp_path: Path, name: str) -> None:
    tree = TREES[name]
    tree.put(tmp_path / name)
    with pytest.raises(DataError, match=f"contains several categories; give one of them: {tree.category}"):
        read_category(tmp_path / name)


def test_the_hash_depends_on_masks_in_a_folder(tmp_path: Path) -> None:
    category = read(tmp_path, "loco")
    before = data_hash(category.test)
    masks = category.root / "ground_truth/logical_anomalies/000"
    put_marks(masks / "001.png", 10)
    changed = data_hash(category.test)
    (masks / "001.png").rename(masks / "002.png")
    assert len({before, changed, data_hash(category.test)}) == 3


def test_invalid_folders_of_masks_are_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "000").mkdir()
    with pytest.raises(DataError, match=r"the folder .*000 must contain masks of equal size; it has 0"):
        read_mask(tmp_path / "000")
    put_marks(tmp_path / "000/a.png", 1)
    put_image(tmp_path / "000/b.png", size=(9, 16))
    with pytest.raises(DataError, match=r"b\.png is 9 × 16 .* but its image is 16 × 16"):
        read_mask(tmp_path / "000", SIZE)
    with pytest.raises(DataError, match="must contain masks of equal size; it has 2"):
        read_mask(tmp_path / "000")


# Incomplete copies


def test_visa_needs_its_split_file_and_skips_missing_images(tmp_path: Path) -> None:
    root = read(tmp_path, "visa").root
    split = tmp_path / "visa/split_csv/1cls.csv"
    text = split.read_text(encoding="utf-8")
    (root / "Data/Images/Normal/0000.JPG").unlink()
    (root / "Data/Masks/Anomaly/000.png").unlink()
    category = read_category(root)
    assert ([sample.path.name for sample in category.train], category.test[0].mask) == (["0002.JPG"], None)
    put_image(root / "Data/Images/Normal/0009.JPG")
    assert read_category(root).train_notes == (
        f"1 row of {split} without an image",
        f"1 image not listed in {split} and not used, such as {root.absolute() / 'Data/Images/Normal/0009.JPG'}",
    )
    for change, message in (
        (("object,", "thing,"), "line 1: needs the header object,split,label,image,mask; found thing"),
        (
            ("candle,test,anomaly", "candle,train,anomaly"),
            r"line 6: needs train or test, .* found candle,train,an",
        ),
        (("candle,train,normal", "candle,good,normal"), "line 3: needs train or test"),
        (("candle,test,normal", "candle,test"), "line 4: needs train or test"),
    ):
        put_text(split, text.replace(*change, 1))
        with pytest.raises(DataError, match=message):
            read_category(root)
    split.unlink()
    with pytest.raises(DataError, match=r"no file .*1cls\.csv, which lists the training images of candle"):
        read_category(root)


def test_an_image_without_the_mask_that_defines_its_label_is_rejected(tmp_path: Path) -> None:
    root = read(tmp_path, "ksdd2").root
    (root / "train/10002_GT.png").unlink()
    with pytest.raises(DataError, match=r"no mask 10002_GT\.png for .*10002\.png, so its label is unknown"):
        read_category(root)
    put_text(root / "train/10002_GT.png", "not an image")
    with pytest.raises(ImageError, match=r"cannot read .*10002_GT\.png"):
        read_category(root)


def test_dagm_images_are_anomalous_by_their_mask_or_by_the_label_file(tmp_path: Path) -> None:
    root = read(tmp_path, "dagm").root
    (root / "Train/Label/0006_label.PNG").unlink()
    assert [sample.path.name for sample in read_category(root).left_out] == ["0006.PNG"]
    put_marks(root / "Train/Label/0006_label.PNG", 10)
    (root / "Train/Label/Labels.txt").unlink()
    assert [sample.path.name for sample in read_category(root).left_out] == ["0006.PNG"]


def test_a_known_layout_without_images_is_rejected(tmp_path: Path) -> None:
    root = read(tmp_path, "mvtec2").root
    for part in ("train", "validation", "test_public"):
        shutil.rmtree(root / part)
    (root / "test_public").mkdir()
    with pytest.raises(DataError, match="can has the layout of mvtec-ad-2, but contains no images"):
        read_category(root)
