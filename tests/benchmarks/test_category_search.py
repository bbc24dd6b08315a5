from pathlib import Path

import pytest

from benchmarks.harness.category_search import find_categories, published_splits
from metalad.data.published import Part
from metalad.runtime.errors import DataError
from tests.data.trees import TREES
from tests.pipelines.benchmark.material import put_category

SCREW: dict[str, dict[Part, int]] = {"screw": {"train": 6, "test good": 2, "test abnormal": 2}}


def test_a_category_is_found_by_its_folders_name_three_levels_below(tmp_path: Path) -> None:
    put_category(tmp_path / "a" / "b" / "Metal Nut")
    put_category(tmp_path / "a" / "b" / "c" / "deep")
    found = find_categories(tmp_path, ["metal_nut", "deep", "cable"], {})
    assert found["metal_nut"].path == tmp_path / "a" / "b" / "Metal Nut"
    assert found["deep"].path is None
    assert (found["cable"].path, found["cable"].reason) == (None, "no folder of this name")


def test_the_root_may_be_the_category(tmp_path: Path) -> None:
    root = put_category(tmp_path / "bottle")
    assert find_categories(root, ["bottle"], {})["bottle"].path == root


def test_an_incomplete_published_category_is_absent_and_the_complete_one_is_preferred(tmp_path: Path) -> None:
    put_category(tmp_path / "a_part" / "screw", train=3)
    part = find_categories(tmp_path, ["screw"], SCREW)["screw"]
    assert part.path is None
    assert part.reason.endswith("screw is not the whole category: 3 of 6 train images are missing")
    whole = put_category(tmp_path / "whole" / "screw")
    assert find_categories(tmp_path, ["screw"], SCREW)["screw"].path == whole
    assert find_categories(tmp_path, ["screw"], {})["screw"].path == tmp_path / "a_part" / "screw"


def test_a_folder_without_images_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "bottle").mkdir()
    assert "no images" in find_categories(tmp_path, ["bottle"], {})["bottle"].reason
    inner = put_category(tmp_path / "bottle" / "bottle")
    assert find_categories(tmp_path, ["bottle"], {})["bottle"].path == inner
    put_category(tmp_path / "tile", good=0, defective=0)
    assert "6 training images and 0 test images" in find_categories(tmp_path, ["tile"], {})["tile"].reason


def test_circular_links_end(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path, target_is_directory=True)
    assert find_categories(tmp_path, ["bottle"], {})["bottle"].path is None


def test_a_missing_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        find_categories(tmp_path / "nowhere", ["bottle"], {})


def test_the_categories_of_the_shared_folder_are_found(shared_data: Path) -> None:
    wanted = ["bottle", "magnetic_tile", "metal_plate", "cookie", "headct", "hazelnut"]
    found = find_categories(shared_data, wanted, published_splits(wanted))
    assert [name for name in wanted if found[name].path is None] == ["hazelnut"]
    assert "62 of 70 test abnormal images are missing" in found["hazelnut"].reason


def test_only_categories_published_with_a_split_must_be_complete() -> None:
    wanted = ["bottle", "btad/01", "magnetic_tile", "headct", "cookie", "Class1"]
    assert list(published_splits(wanted)) == ["bottle", "btad/01"]


def test_categories_of_all_published_sets_are_found_and_same_names_are_distinguished_by_set(tmp_path: Path) -> None:
    for name, tree in TREES.items():
        tree.put(tmp_path / name)
    put_category(tmp_path / "mine" / "03")
    wanted = ["mvtec2/can", "breakfast_box", "candle", "btad/03", "mine/03", "ksdd", "mtd/magnetic_tile", "Class1"]
    found = find_categories(tmp_path, wanted, {})
    expected = ["mvtec2/can", "loco/breakfast_box", "visa/candle", "btad/03", "mine/03", "ksdd", "mtd", "dagm/Class1"]
    assert [found[name].path for name in wanted] == [tmp_path / folder for folder in expected]
    whole = find_categories(tmp_path, ["btad/03"], published_splits(["btad/03"]))["btad/03"]
    assert "998 of 1,000 train images are missing" in whole.reason
