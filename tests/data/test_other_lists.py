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
LISTING = {
    "sizes.csv": "file,width\nimg0.png,12\nimg1.png,13",
    "light.csv": "file,light\nimg0.png,normal\nimg1.png,dark",
    "all_good.csv": "file,result\nimg0.png,OK\nimg1.png,OK",
}
OTHER = {
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


@pytest.mark.parametrize("name", ["labels.xlsx", "Labels.xls", "label.ods", "annotations.xlsx"])
def test_a_spreadsheet_of_labels_is_refused(tmp_path: Path, name: str) -> None:
    put_images(tmp_path)
    put_text(tmp_path / name, "PK")
    with pytest.raises(DataError, match=f"{name} is not read; save it as labels.csv"):
        read_category(tmp_path)
