"""Tables that are not labels.csv are refused if they tell good images from anomalous ones, else noted."""

from pathlib import Path

import pytest

from metalad.data import read_category
from metalad.runtime.errors import DataError
from tests.data.folders import put_image, put_text

TELLING = {
    "results.csv": "file,result\nimg0.png,OK\nimg1.png,NG\nimg2.png,OK",
    "Prüfung.csv": "Nr;Bild;Ergebnis\n1;img0.png;i.O.\n2;img1.png;n.i.O.",
    "train.csv": "id,width,defective\nimg0,12,0\nimg1,12,1",
    "検査.tsv": "画像\t判定\nC:\\cam\\img0.png\t良品\nC:\\cam\\img1.png\t不良",
}
TELLING |= {
    "verdicts.txt": "img0.png OK\nimg1 OK\nimg2.png NG",
    "verdicts.json": '{"img0.png": "good", "img1.png": "bad"}',
    "meta.json": '[{"file": "img0.png", "verdict": "OK"}, {"file": "img1.png", "verdict": "NG"}]',
}
LISTING = {
    "sizes.csv": "file,width\nimg0.png,12\nimg1.png,13",
    "light.csv": "file,light\nimg0.png,normal\nimg1.png,dark",
    "all_good.csv": "file,result\nimg0.png,OK\nimg1.png,OK\nimg2.png,OK",
}
OTHER = {
    "notes.txt": "img0.png was taken on a Monday and img1.png on a Tuesday",
    "camera.json": '{"exposure": 3}',
    "odd.json": "[1, [2]]",
    "predictions.csv": "path,is_anomalous\nimg0.png,True\nimg1.png,False",
    "temperature.csv": "time,OK\n12:00,1\n12:01,0",
    "parts.csv": "part,ok\nA,yes\nB,no",
    "broken.csv": "\0",
    "measurements.xlsx": "PK",
}


def put_images(root: Path) -> None:
    for number in range(3):
        put_image(root / f"img{number}.png", number)


@pytest.mark.parametrize("name", TELLING)
def test_a_table_that_tells_images_apart_is_refused(tmp_path: Path, name: str) -> None:
    put_images(tmp_path)
    put_text(tmp_path / name, TELLING[name])
    with pytest.raises(
        DataError, match=rf"{name} states in its column .* which images are good.*labels\.csv.*--all-good"
    ):
        read_category(tmp_path)
    assert len(read_category(tmp_path, all_good=True).train) == 3


@pytest.mark.parametrize("name", LISTING)
def test_another_table_of_images_is_noted(tmp_path: Path, name: str) -> None:
    put_images(tmp_path)
    put_text(tmp_path / name, LISTING[name])
    assert read_category(tmp_path).train_notes == (f"{tmp_path / name} lists images, but only labels.csv is read",)


@pytest.mark.parametrize("name", OTHER)
def test_other_tables_are_not_mentioned(tmp_path: Path, name: str) -> None:
    put_images(tmp_path)
    put_text(tmp_path / name, OTHER[name])
    assert read_category(tmp_path).train_notes == ()


def test_a_list_of_some_images_with_a_name_of_good_ones_is_refused(tmp_path: Path) -> None:
    put_images(tmp_path)
    put_text(tmp_path / "good.txt", "img0.png\nimg2.png\n")
    with pytest.raises(DataError, match=r"good\.txt lists 2 of 3 images in .*not all alike; save it as labels\.csv"):
        read_category(tmp_path)
    put_text(tmp_path / "good.txt", "img0.png\nimg1.png\nimg2.png\n")
    assert len(read_category(tmp_path).train) == 3


@pytest.mark.parametrize("place", ["DATA/images", "."])
def test_labels_csv_beside_or_above_the_given_folder_is_refused_with_its_folder(tmp_path: Path, place: str) -> None:
    data = tmp_path / "DATA"
    put_images(data / "images")
    put_text(tmp_path / place / "Labels.csv", "file,label\nimg0.png,0\nimg1.png,1\n")
    with pytest.raises(DataError, match=rf"Labels\.csv labels images in {data}; give {tmp_path / place}; if all"):
        read_category(data)
    put_text(tmp_path / place / "Labels.csv", "file,label\nother0.png,0\nother1.png,1\n")
    assert len(read_category(data).train) == 3


def test_a_list_above_the_given_folder_is_not_of_its_images(tmp_path: Path) -> None:
    put_images(tmp_path / "DATA")
    put_text(tmp_path / "results.csv", TELLING["results.csv"])
    assert read_category(tmp_path / "DATA").train_notes == ()


def test_images_with_several_suffixes_are_noted(tmp_path: Path) -> None:
    put_images(tmp_path)
    for number in range(2):
        put_image(tmp_path / f"img{number}.jpg", number)
    note = f"2 images with several suffixes, probably copies of each other, such as {tmp_path / 'img0'}.*"
    assert read_category(tmp_path).train_notes == (note,)


@pytest.mark.parametrize("name", ["labels.xlsx", "Labels.xls", "label.ods", "annotations.xlsx", "labels.txt"])
def test_a_file_of_labels_is_refused(tmp_path: Path, name: str) -> None:
    put_images(tmp_path)
    put_text(tmp_path / name, "file label\nimg0.png 0\nimg1.png 1\n")
    with pytest.raises(DataError, match=f"{name} is not read; save it as labels.csv"):
        read_category(tmp_path)
