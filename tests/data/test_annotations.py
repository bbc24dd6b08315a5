"""Annotation files are no ground truth for metalad, but tell good images from others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from metalad.data import read_category
from metalad.data.annotations import find_annotations
from metalad.runtime.errors import DataError
from tests.data.folders import put_image, put_text

BOX = {"label": "crack", "points": [[1, 1], [4, 4]]}
XML = "<annotation><filename>{}</filename>{}</annotation>"


def labelme(_: Path, image: Path, marked: bool) -> None:
    put_text(image.with_suffix(".json"), json.dumps({"version": "5.0", "shapes": [BOX] * marked}))


def supervisely(_: Path, image: Path, marked: bool) -> None:
    put_text(image.with_name(f"{image.name}.json"), json.dumps({"objects": [BOX] * marked}))


def voc(_: Path, image: Path, marked: bool) -> None:
    put_text(image.with_suffix(".xml"), XML.format(image.name, "<object><name>crack</name></object>" * marked))


def yolo(_: Path, image: Path, marked: bool) -> None:
    put_text(image.with_suffix(".txt"), "0 0.5 0.5 0.25 0.125\n" * marked)


def yolo_folders(root: Path, image: Path, marked: bool) -> None:
    put_text(root / "labels" / f"{image.stem}.txt", "0 0.5 0.5 0.25 0.125\n1 .1 .1 1 1" * marked)


def coco(root: Path, image: Path, marked: bool) -> None:
    file = root / "annotations" / "instances.json"
    content = json.loads(file.read_text()) if file.exists() else {"images": [], "annotations": []}
    content["images"].append({"id": int(image.stem), "file_name": f"x/{image.name}"})
    content["annotations"] += [{"image_id": int(image.stem), "bbox": [1, 2, 3, 4]}] * marked
    put_text(file, json.dumps(content))


def cvat(root: Path, image: Path, marked: bool) -> None:
    file = root / "annotations.xml"
    text = file.read_text().replace("</annotations>", "") if file.exists() else "<annotations>"
    tag = f'<image id="{image.stem}" name="{image.name}"'
    put_text(file, text + tag + ("><box label='x'/></image>" if marked else "/>") + "</annotations>")


Put = Callable[[Path, Path, bool], None]
ANNOTATIONS = (labelme, supervisely, voc, yolo, yolo_folders, coco, cvat)


def put(root: Path, annotate: Put, marked: str) -> None:
    for number, is_marked in enumerate(marked):
        annotate(root, put_image(root / "images" / f"{number}.png", number), is_marked == "x")


@pytest.mark.parametrize("annotate", ANNOTATIONS)
def test_marks_of_some_images_are_refused_as_training_data(tmp_path: Path, annotate: Put) -> None:
    put(tmp_path, annotate, "..x.")
    found = find_annotations(tmp_path, sorted((tmp_path / "images").glob("*.png")))
    assert found is not None
    assert [image.name for image in found.marked] == ["2.png"]
    with pytest.raises(
        DataError, match=rf"mark 1 of 4 images in {tmp_path}, such as 2\.png in .*not all good.*--all-good"
    ):
        read_category(tmp_path)
    assert len(read_category(tmp_path, all_good=True).train) == 4


@pytest.mark.parametrize("annotate", ANNOTATIONS)
def test_marks_of_all_images_are_noted_and_files_without_marks_are_not(tmp_path: Path, annotate: Put) -> None:
    put(tmp_path / "all", annotate, "xxx")
    note = read_category(tmp_path / "all").train_notes[-1]
    assert note.startswith("3 good images are marked by annotation files but taken as good, such as ")
    put(tmp_path / "none", annotate, "...")
    assert not [note for note in read_category(tmp_path / "none").train_notes if "annotation" in note]


@pytest.mark.parametrize("annotate", [labelme, voc, yolo])
def test_annotations_of_test_images_are_noted(tmp_path: Path, annotate: Put) -> None:
    for seed, name in enumerate(("train/good/0", "test/good/0", "test/crack/1", "test/crack/2")):
        annotate(tmp_path, put_image(tmp_path / f"{name}.png", seed), "crack" in name)
    category = read_category(tmp_path)
    (note,) = category.test_notes
    assert note.startswith(f"2 images have annotation files, which are not read, such as {tmp_path}/test/crack/1.")
    assert category.train_notes == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("1.json", '{"camera": "A", "exposure": 3, "labels": ["OK"]}'),
        ("1.json", "[1, 2]"),
        ("1.json", "no JSON"),
        ("1.txt", "2024 10 31 12 59"),
        ("1.txt", "exposure 0.5 0.5 0.5 0.5"),
        ("1.xml", "<camera/>"),
        ("classes.txt", "crack\nscratch"),
        ("settings.json", '{"images": 3, "annotations": []}'),
    ],
)
def test_other_files_are_no_annotations(tmp_path: Path, name: str, text: str) -> None:
    image = put_image(tmp_path / "1.png")
    put_text(tmp_path / name, text)
    assert find_annotations(tmp_path, [image]) is None
