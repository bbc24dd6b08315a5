from collections import Counter
from pathlib import Path

import pytest

from metalad.data import read_category
from metalad.data.images import image_size, read_mask
from metalad.runtime.errors import DataError
from tests.data.folders import put_image, put_mask, put_text


def put_category(root: Path) -> None:
    put_image(root / "train/good/1.png")
    put_image(root / "test/good/1.png")
    for name in ("1.png", "2.jpg", "deep/3.png", "4.png"):
        put_image(root / "test/crack" / name)
    put_mask(root / "ground_truth/crack/1_mask.png")
    put_mask(root / "ground_truth/crack/2.bmp")
    put_mask(root / "ground_truth/crack/deep/3_mask.png")


def test_each_anomalous_image_gets_its_mask(tmp_path: Path) -> None:
    put_category(tmp_path / "tile")
    category = read_category(tmp_path / "tile")
    assert (category.name, category.layout) == ("tile", "mvtec")
    assert [sample.name for sample in category.train] == ["good/1.png"]
    masks = {sample.path.name: sample.mask and sample.mask.name for sample in category.test if sample.abnormal}
    assert masks == {"1.png": "1_mask.png", "2.jpg": "2.bmp", "3.png": "3_mask.png", "4.png": None}
    assert {(sample.defect, sample.abnormal) for sample in category.test} == {
        ("good", False),
        ("crack", True),
    }
    assert category.test[-1].name == "good/1.png"


def test_train_or_test_may_be_missing(tmp_path: Path) -> None:
    put_image(tmp_path / "a/train/good/1.png")
    put_image(tmp_path / "b/test/crack/1.png")
    (tmp_path / "a/test").mkdir()
    a, b = read_category(tmp_path / "a"), read_category(tmp_path / "b")
    assert (len(a.train), len(a.test), a.layout) == (1, 0, "mvtec")
    assert (len(b.train), len(b.test), b.layout) == (0, 1, "mvtec")


def test_images_in_a_folder_without_a_known_layout_are_good(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.png", ".hidden/d.png"):
        put_image(tmp_path / name)
    category = read_category(tmp_path)
    assert (category.layout, category.test) == ("folder", ())
    assert [sample.path for sample in category.train] == [tmp_path / "a/c.png", tmp_path / "b.png"]
    assert not any(sample.abnormal for sample in category.train)


def test_folders_without_usable_images_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    put_text(tmp_path / "notes/readme.txt", "")
    put_text(tmp_path / "category/train/good/photo.heic", "")
    (tmp_path / "hollow/train/good/deep").mkdir(parents=True)
    put_image(tmp_path / "bad/train/crack/1.png")
    put_image(tmp_path / "bad/test/good/1.png")
    put_image(tmp_path / "flat/test/1.png")
    (tmp_path / "void/test").mkdir(parents=True)
    expected = {
        "none": "no folder .*none; check the path",
        "notes/readme.txt": r"readme\.txt is a file, but a folder of images is needed",
        "empty": r"no images in .*empty: expected files with .*\.bmp .*\.webp, found an empty folder",
        "notes": r"no images in .*notes: expected files with .*, found 1 other files such as readme\.txt",
        "category": r"no images in .*good: .* found 1 other files such as photo\.heic",
        "hollow": "found only empty folders such as deep",
        "bad": r"no folder .*good, which must contain the good images; found 1 other files such as 1\.png",
        "flat": "the images in .*test must be in subfolders: good",
        "void": "no images in .*test: .* found an empty folder",
    }
    for name, text in expected.items():
        with pytest.raises(DataError, match=text):
            read_category(tmp_path / name)


def test_folders_with_several_categories_or_mixed_images_are_rejected(tmp_path: Path) -> None:
    put_category(tmp_path / "all/tile")
    with pytest.raises(DataError, match="contains several categories; give one of them: tile"):
        read_category(tmp_path / "all")
    with pytest.raises(DataError, match=r"several kinds \(crack, crack/deep, good\); to train, give .*tile/test/good;"):
        read_category(tmp_path / "all/tile/test")


def test_symbolic_link_loops_are_handled(tmp_path: Path) -> None:
    put_category(tmp_path / "tile")
    (tmp_path / "tile/train/good/loop").symlink_to(tmp_path / "tile/train")
    assert len(read_category(tmp_path / "tile").train) == 1
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(DataError, match=r"cannot read the folder .*round"):
        read_category(tmp_path / "round")


def test_an_unreadable_folder_is_named_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:  # real permissions have no effect if the tests run as root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(DataError, match=r"cannot read the folder .*Permission denied; check its permissions"):
        read_category(tmp_path)


def test_the_category_bottle_is_read_completely(shared_data: Path) -> None:
    category = read_category(shared_data / "mvtec" / "bottle")
    assert (category.name, category.layout, len(category.train)) == ("bottle", "mvtec", 209)
    counts = Counter(sample.defect for sample in category.test)
    assert counts == {"good": 20, "broken_large": 20, "broken_small": 22, "contamination": 21}
    assert all((sample.mask is not None) == sample.abnormal for sample in category.test)


def test_masks_of_magnetic_tiles_have_the_sizes_of_their_images(shared_data: Path) -> None:
    category = read_category(shared_data / "mtd" / "magnetic_tile")
    anomalous = [sample for sample in category.test if sample.abnormal]
    assert (len(category.train), len(anomalous), len(category.test)) == (400, 200, 320)
    sizes = {image_size(sample.path) for sample in anomalous}
    assert len(sizes) > 50
    for sample in anomalous[::10]:
        assert sample.mask is not None
        assert read_mask(sample.mask, image_size(sample.path)).any()
