from pathlib import Path

import pytest

from metalad.pipelines.benchmark.categories import named_categories
from metalad.runtime.errors import ConfigError, DataError
from tests.pipelines.benchmark.material import put_category


def test_a_category_is_named_after_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = put_category(tmp_path / "cookie")
    assert named_categories([str(cookie)]) == {"cookie": cookie}
    monkeypatch.chdir(cookie)
    assert named_categories(["."]) == {"cookie": cookie}


def test_categories_with_the_same_name_are_distinguished_by_parent_folders(tmp_path: Path) -> None:
    folders = [put_category(tmp_path / name) for name in ("a/x/nut", "b/x/nut", "b/y/nut", "b/bolt")]
    assert list(named_categories(folders)) == ["a/x/nut", "b/x/nut", "y/nut", "bolt"]


def test_a_category_given_twice_is_an_error(tmp_path: Path) -> None:
    folder = put_category(tmp_path / "cookie")
    with pytest.raises(ConfigError, match="is given twice"):
        named_categories([folder, folder / ".." / "cookie"])


def test_no_category_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no category is given"):
        named_categories([])


def test_a_folder_without_test_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="6 training images and 0 test images"):
        named_categories([put_category(tmp_path / "cookie", good=0, defective=0)])
    with pytest.raises(DataError):
        named_categories([tmp_path / "missing"])
