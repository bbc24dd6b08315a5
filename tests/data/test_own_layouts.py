"""Each published layout in miniature: samples, labels and masks are what was put there."""

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
def test_samples_labels_and_masks_are_what_was_put_there(tmp_path: Path, name: str) -> None:
    category, tree = read(tmp_path, name), TREES[name]
    assert (category.name, category.layout) == (tree.category or name, tree.layout)
    abnormal = [sample for sample in category.test if sample.abnormal]
    good = [sample for sample in category.test if not sample.abnormal]
    parts = (category.train, category.validation, good, abnormal, category.left_out)
    assert tuple(map(len, parts)) == tree.counts
    assert {(sample.abnormal, sample.defect, sample.mask) for part in parts[:3] for sample in part} == {
        (False, "good", None)
    }
    assert all(sample.abnormal and sample.defect != "good" for sample in (*abnormal, *category.left_out))
    assert {sample.name for sample in abnormal} == set(tree.rows)
    for sample in abnormal:
        assert sample.mask is not None
        expected = np.zeros(SIZE, bool)
        expected[list(tree.rows[sample.name])] = True
        np.testing.assert_array_equal(read_mask(sample.mask, SIZE), expected)


@pytest.mark.parametrize("name", TREES)
def test_no_image_is_listed_twice_and_none_is_a_mask(tmp_path: Path, name: str) -> None:
    category = read(tmp_path, name)
    paths = [
        sample.path
        for part in (category.train, category.validation, category.test, category.left_out)
        for sample in part
    ]
    assert len(set(paths)) == len(paths)
    # The images are of colour noise, the masks are grey.
    assert not [path for path in paths if any(word in path.stem for word in ("mask", "label", "GT"))]
    assert not [path for path in paths if "private" in str(path)]


@pytest.mark.parametrize("name", ["ksdd", "mtd"])
def test_what_was_published_unsplit_is_split_by_the_seed(tmp_path: Path, name: str) -> None:
    category = read(tmp_path, name)
    root = category.root
    assert read_category(root) == category
    splits = {tuple(sample.path for sample in read_category(root, seed=seed).train) for seed in range(6)}
    assert len(splits) > 1


@pytest.mark.parametrize("name", ["mvtec2", "visa", "btad", "ksdd2", "dagm"])
def test_a_published_split_is_nobodys_choice(tmp_path: Path, name: str) -> None:
    category = read(tmp_path, name)
    assert read_category(category.root, seed=5) == category


@pytest.mark.parametrize("name", ["loco", "ksdd"])
def test_a_published_folder_is_trained_on_and_evaluated_as_it_is(tmp_path: Path, name: str) -> None:
    category = read(tmp_path, name)
    model = train(category.root, tmp_path / "run", method=VariationModelConfig(image_size=(32, 32)))
    assert sum(model.header.images.values()) == len(category.train)
    report = evaluate(model.path, category.root)
    assert len(report.verdicts) == len(category.test)
    assert report.chosen.metrics_original.pixel_auroc is not None


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if tree.category])
def test_a_whole_set_is_not_taken_for_a_category(tmp_path: Path, name: str) -> None:
    tree = TREES[name]
    tree.put(tmp_path / name)
    with pytest.raises(DataError, match=f"holds several categories; give one of them: {tree.category}"):
        read_category(tmp_path / name)


def test_masks_in_a_folder_are_part_of_the_hash(tmp_path: Path) -> None:
    category = read(tmp_path, "loco")
    before = data_hash(category.test)
    masks = category.root / "ground_truth/logical_anomalies/000"
    put_marks(masks / "001.png", 10)
    changed = data_hash(category.test)
    (masks / "001.png").rename(masks / "002.png")
    assert len({before, changed, data_hash(category.test)}) == 3


def test_bad_folders_of_masks_are_named(tmp_path: Path) -> None:
    (tmp_path / "000").mkdir()
    with pytest.raises(DataError, match=r"the folder .*000 must hold masks, all of one size; it holds 0"):
        read_mask(tmp_path / "000")
    put_marks(tmp_path / "000/a.png", 1)
    put_image(tmp_path / "000/b.png", size=(9, 16))
    with pytest.raises(DataError, match=r"b\.png is 9 × 16 .* but its image is 16 × 16"):
        read_mask(tmp_path / "000", SIZE)
    with pytest.raises(DataError, match="must hold masks, all of one size; it holds 2"):
        read_mask(tmp_path / "000")


# Copies that lack something


def test_visa_needs_its_split_and_skips_what_is_not_there(tmp_path: Path) -> None:
    root = read(tmp_path, "visa").root
    split = tmp_path / "visa/split_csv/1cls.csv"
    text = split.read_text(encoding="utf-8")
    (root / "Data/Images/Normal/0000.JPG").unlink()
    (root / "Data/Masks/Anomaly/000.png").unlink()
    category = read_category(root)
    assert ([sample.path.name for sample in category.train], category.test[0].mask) == (["0002.JPG"], None)
    for change, words in (
        (("object,", "thing,"), "line 1: needs the heading object,split,label,image,mask; found thing"),
        (
            ("candle,test,anomaly", "candle,train,anomaly"),
            r"line 6: needs train or test, .* found candle,train,an",
        ),
        (("candle,train,normal", "candle,good,normal"), "line 3: needs train or test"),
        (("candle,test,normal", "candle,test"), "line 4: needs train or test"),
    ):
        put_text(split, text.replace(*change, 1))
        with pytest.raises(DataError, match=words):
            read_category(root)
    split.unlink()
    with pytest.raises(DataError, match=r"no file .*1cls\.csv, which says which images of candle to train on"):
        read_category(root)


def test_an_image_without_the_mask_that_tells_what_it_is_is_refused(tmp_path: Path) -> None:
    root = read(tmp_path, "ksdd2").root
    (root / "train/10002_GT.png").unlink()
    with pytest.raises(DataError, match=r"no mask 10002_GT\.png beside .*10002\.png, so nobody knows"):
        read_category(root)
    put_text(root / "train/10002_GT.png", "not an image")
    with pytest.raises(ImageError, match=r"cannot read .*10002_GT\.png"):
        read_category(root)


def test_dagm_knows_a_defect_by_the_list_where_its_mask_is_lost(tmp_path: Path) -> None:
    root = read(tmp_path, "dagm").root
    (root / "Train/Label/0006_label.PNG").unlink()
    assert [sample.path.name for sample in read_category(root).left_out] == ["0006.PNG"]
    put_marks(root / "Train/Label/0006_label.PNG", 10)
    (root / "Train/Label/Labels.txt").unlink()
    assert [sample.path.name for sample in read_category(root).left_out] == ["0006.PNG"]


def test_folders_without_images_are_named(tmp_path: Path) -> None:
    root = read(tmp_path, "mvtec2").root
    for part in ("train", "validation", "test_public"):
        shutil.rmtree(root / part)
    (root / "test_public").mkdir()
    with pytest.raises(DataError, match="can is laid out as mvtec-ad-2 is, but holds no images"):
        read_category(root)
