"""Thumbnails, and the overlays and maps that metalad wrote, are no images of products."""

from pathlib import Path

import numpy as np
import pytest

from metalad.data import read_category
from metalad.data.derived import is_written_picture, thumbnails_beside
from metalad.data.images import read_image, write_image
from metalad.data.products import iter_products
from metalad.data.reading import WRITTEN_NOTE, Reading
from metalad.data.walking import LeftOut
from metalad.visualization.overlay import save_picture
from tests.data.folders import put_image

LARGE, SMALL = (48, 40), (12, 10)


def put_originals(folder: Path, count: int = 3) -> None:
    for number in range(count):
        put_image(folder / f"{number:03}.png", number, LARGE)


@pytest.mark.parametrize(
    "name", ["Thumbs", "thumbs", "thumbnails", "Thumbnail", "_thumbs", "thumb_128", "preview", "Vorschau"]
)
@pytest.mark.parametrize("originals", ["", "images", "images/camera1"])
def test_folders_of_thumbnails_are_left_out_and_counted(tmp_path: Path, name: str, originals: str) -> None:
    put_originals(tmp_path / originals)
    for number in range(2):
        put_image(tmp_path / name / f"{number:03}.jpg", number, SMALL)
    category = read_category(tmp_path)
    assert len(category.train) == 3
    assert category.train_notes[-1] == "2 files left out: 2 thumbnails"
    left_out = LeftOut()
    assert len(list(iter_products(tmp_path, left_out))) == 3
    assert left_out.text() == "2 files left out: 2 thumbnails"


def test_a_folder_of_thumbnails_is_no_kind_of_defect(tmp_path: Path) -> None:
    for folder in ("train/good", "test/good", "test/crack"):
        put_originals(tmp_path / folder)
    put_image(tmp_path / "test/Thumbs/000.png", 0, SMALL)
    assert {sample.defect for sample in read_category(tmp_path).test} == {"good", "crack"}


def test_thumbnails_beside_their_images_are_left_out(tmp_path: Path) -> None:
    put_originals(tmp_path)
    names = ["000_thumb.jpg", "thumb_001.png", "002-preview.jpg"]
    for name in names:
        put_image(tmp_path / name, 1, SMALL)
    assert {path.name for path in thumbnails_beside(sorted(tmp_path.iterdir()))} == set(names)
    category = read_category(tmp_path)
    assert (len(category.train), category.train_notes) == (3, ("3 files left out: 3 thumbnails",))


@pytest.mark.parametrize("names", ["index_finger/1.png thumbs/1.png", "1.png 1_thumb.png", "a/1.png thumbs/2.png"])
def test_images_of_thumbs_are_images(tmp_path: Path, names: str) -> None:
    for seed, name in enumerate(names.split()):
        put_image(tmp_path / name, seed, LARGE)
    assert len(read_category(tmp_path).train) == 2


def put_pictures(out: Path) -> list[Path]:
    paths = [out / "overlays/000.jpg", out / "overlays/001.png", out / "maps/000.png"]
    image = np.random.default_rng(0).integers(0, 256, (*LARGE, 3), dtype=np.uint8)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(paths[0], image)
    save_picture(paths[1], image)
    save_picture(paths[2], image[:, :, 0].astype(np.uint16) * 200)
    return paths


def test_pictures_that_metalad_wrote_are_recognized_wherever_they_are(tmp_path: Path) -> None:
    put_originals(tmp_path)
    pictures = put_pictures(tmp_path)
    assert all(map(is_written_picture, pictures))
    assert not is_written_picture(tmp_path / "000.png")
    category = read_category(tmp_path)
    assert (len(category.train), category.train_notes) == (3, ("3 files left out: 3 pictures of metalad",))
    reading = Reading()
    read_image(pictures[0].rename(tmp_path / "new.jpg"), reading)
    read_image(tmp_path / "000.png", reading)
    assert reading.notes.lines() == (f"1 image {WRITTEN_NOTE}, such as {tmp_path / 'new.jpg'}",)


def test_photographs_in_a_folder_named_overlays_are_images(tmp_path: Path) -> None:
    put_originals(tmp_path / "overlays")
    assert len(read_category(tmp_path).train) == 3


def test_the_mark_changes_no_pixel(tmp_path: Path) -> None:
    put_pictures(tmp_path)
    write_image(tmp_path / "plain.png", read_image(tmp_path / "overlays/001.png"))
    assert np.array_equal(read_image(tmp_path / "plain.png"), read_image(tmp_path / "overlays/001.png"))
