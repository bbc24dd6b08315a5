from pathlib import Path

import pytest

from metalad.benchmark.places import find_places
from metalad.errors import DataError
from tests.benchmark.material import put_category


def test_a_category_is_found_by_its_folders_name_three_floors_below(tmp_path: Path) -> None:
    put_category(tmp_path / "a" / "b" / "Metal Nut")
    put_category(tmp_path / "a" / "b" / "c" / "deep")
    found = find_places(tmp_path, ["metal_nut", "deep", "cable"], {})
    assert found["metal_nut"].path == tmp_path / "a" / "b" / "Metal Nut"
    assert found["deep"].path is None
    assert (found["cable"].path, found["cable"].reason) == (None, "no folder of this name")


def test_the_folder_given_may_be_the_category(tmp_path: Path) -> None:
    root = put_category(tmp_path / "bottle")
    assert find_places(root, ["bottle"], {})["bottle"].path == root


def test_a_part_of_a_published_category_is_absent_and_the_whole_one_is_preferred(tmp_path: Path) -> None:
    put_category(tmp_path / "a_part" / "screw", train=3)
    part = find_places(tmp_path, ["screw"], {"screw": (6, 4)})["screw"]
    assert part.path is None
    assert "not the whole category: 3 + 4 images of 6 + 4" in part.reason
    whole = put_category(tmp_path / "whole" / "screw")
    assert find_places(tmp_path, ["screw"], {"screw": (6, 4)})["screw"].path == whole
    assert find_places(tmp_path, ["screw"], {})["screw"].path == tmp_path / "a_part" / "screw"


def test_a_folder_that_only_has_the_name_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "bottle").mkdir()
    assert "no images" in find_places(tmp_path, ["bottle"], {})["bottle"].reason
    inner = put_category(tmp_path / "bottle" / "bottle")
    assert find_places(tmp_path, ["bottle"], {})["bottle"].path == inner
    put_category(tmp_path / "tile", good=0, defective=0)
    assert "6 images to train on and 0 to test on" in find_places(tmp_path, ["tile"], {})["tile"].reason


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path, target_is_directory=True)
    assert find_places(tmp_path, ["bottle"], {})["bottle"].path is None


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        find_places(tmp_path / "nowhere", ["bottle"], {})


def test_what_lies_in_the_shared_folder_is_found(shared_data: Path) -> None:
    wanted = ["bottle", "magnetic_tile", "metal_plate", "cookie", "headct", "hazelnut"]
    found = find_places(shared_data, wanted, {"bottle": (209, 83), "hazelnut": (391, 110)})
    assert [name for name in wanted if found[name].path is None] == ["hazelnut"]
