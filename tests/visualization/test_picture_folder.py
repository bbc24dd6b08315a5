"""Pictures at full size beside a page: which are written, and when the folder appears."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalad.runtime.errors import RunError
from metalad.visualization.picture_folder import PictureFolder
from metalad.visualization.pictures import embed, embed_crop


def image(height: int = 300, width: int = 400) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_only_pictures_that_a_thumbnail_shrinks_are_written(tmp_path: Path) -> None:
    folder = PictureFolder(tmp_path / "page.html")
    mask = np.zeros((300, 400), np.uint8)
    mask[3, 5] = 255
    names = folder.write_full_size(
        7, {"Input": image(), "Ground truth": mask, "Small": image(256, 256), "None": None}, False
    )
    assert names == {
        "Input": "page_files/00007-input.jpg",
        "Ground truth": "page_files/00007-ground-truth.png",
        "Small": None,
        "None": None,
    }
    assert not (tmp_path / "page_files").exists()
    folder.publish()
    assert {f"page_files/{file.name}" for file in (tmp_path / "page_files").iterdir()} == {*names.values()} - {None}
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / str(names["Ground truth"]))), mask)
    with Image.open(tmp_path / str(names["Input"])) as picture:
        assert picture.size == (400, 300)
    folder.close()
    assert [file.name for file in tmp_path.iterdir()] == ["page_files"]


def test_half_of_the_pixels_are_kept_for_important_images(tmp_path: Path) -> None:
    folder = PictureFolder(tmp_path / "page.html", max_pixels=4 * 300 * 400)
    written = [folder.write_full_size(number, {"Input": image()}, number >= 4)["Input"] for number in range(8)]
    assert [name is not None for name in written] == [True, True, False, False, True, True, False, False]


def test_an_interrupted_command_leaves_the_former_folder(tmp_path: Path) -> None:
    former = tmp_path / "page_files" / "00012-input.jpg"
    former.parent.mkdir()
    former.touch()
    PictureFolder(tmp_path / "page.html").write_full_size(0, {"Input": image()}, False)  # killed before `publish`
    assert former.exists()
    folder = PictureFolder(tmp_path / "page.html")
    assert {file.name for file in tmp_path.iterdir()} == {"page_files"}
    folder.publish()  # nothing was written: the new page has no files
    assert list(tmp_path.iterdir()) == []


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "page_files").mkdir()
    (tmp_path / "page_files" / "mine.jpg").touch()
    for number in (3, 4):
        folder = PictureFolder(tmp_path / "page.html")
        folder.write_full_size(number, {"Input": image()}, False)
        folder.publish()
    assert {file.name for file in (tmp_path / "page_files").iterdir()} == {"mine.jpg", "00004-input.jpg"}


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="page_files"):
        PictureFolder(tmp_path / "file" / "page.html").write_full_size(0, {"Input": image()}, False)


@pytest.mark.parametrize(
    ("row", "column", "top", "left"), [(150, 200, 22, 72), (0, 0, 0, 0), (299, 399, 44, 144), (150, 399, 22, 144)]
)
def test_a_crop_has_full_resolution_and_contains_its_pixel(row: int, column: int, top: int, left: int) -> None:
    picture = image()
    crop, expected = embed_crop(picture, row, column), embed(picture[top : top + 256, left : left + 256])
    assert expected is not None
    assert crop == dataclasses.replace(expected, center=((column + 0.5) / 400, (row + 0.5) / 300))
    assert (expected.width, expected.height) == (256, 256)


def test_a_picture_that_fits_a_thumbnail_has_no_crop() -> None:
    assert embed_crop(image(256, 200), 3, 4) is None
    narrow = embed_crop(image(1000, 50), 500, 10)
    assert narrow is not None
    assert (narrow.width, narrow.height) == (50, 256)
