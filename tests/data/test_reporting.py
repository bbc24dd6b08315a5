"""What the data layer found is reported by train, evaluate and predict."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import metalad
from metalad import Model, Report
from metalad.methods.variation_model import VariationModelConfig
from metalad.pipelines.predict.sources import find_sources
from metalad.runtime.errors import DataError
from tests.data.folders import put_image, put_mask, put_text

SIDE = (32, 32)


def train(data: Path, out: Path, *, all_good: bool = False) -> Model:
    return metalad.train(data, out, method=VariationModelConfig(image_size=SIDE), all_good=all_good, device="cpu")


def images(count: int) -> dict[str, int]:
    return {"training": count, "validation": 0, "skipped": 0}


def put_good(folder: Path, count: int = 6) -> None:
    for number in range(count):
        put_image(folder / f"{number:03}.png", number, (64, 64))


def put_square(path: Path, side: int, size: int = 64) -> None:
    """Write a mask whose first `side` × `side` pixels are white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size, size), np.uint8)
    mask[:side, :side] = 255
    Image.fromarray(mask).save(path)


@pytest.fixture
def category(tmp_path: Path) -> Path:
    root = tmp_path / "tile"
    put_good(root / "train/good")
    put_good(root / "test/good", 3)
    for number in range(3):
        put_image(root / "test/crack" / f"{number:03}.png", 50 + number, (64, 64))
        put_square(root / "ground_truth/crack" / f"{number:03}_mask.png", 16)
    return root


def test_train_logs_the_files_that_are_left_out(category: Path, caplog: pytest.LogCaptureFixture) -> None:
    (category / "train/good/x.gif").touch()
    (category / "train/good/y.png").symlink_to("gone.png")
    (category / "test/good/z.gif").touch()
    with caplog.at_level(logging.INFO, "metalad"):
        train(category, category.parent / "run")
    assert "2 files left out: 1 .gif, 1 dead link" in caplog.messages
    log = (category.parent / "run/train.log").read_text(encoding="utf-8")
    assert "2 files left out: 1 .gif, 1 dead link" in log


def test_train_logs_the_number_of_images_of_each_subfolder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_good(tmp_path / "data/cam1", 4)
    put_image(tmp_path / "data/cam2/x.png", 9, (64, 64))
    with caplog.at_level(logging.INFO, "metalad"):
        train(tmp_path / "data", tmp_path / "run")
    assert f"5 images below {tmp_path / 'data'}, all taken as good: 4 in cam1, 1 in cam2" in caplog.messages


def test_train_refuses_mixed_folders_unless_all_are_good(tmp_path: Path) -> None:
    put_good(tmp_path / "data/OK", 4)
    put_image(tmp_path / "data/NG/x.png", 9, (64, 64))
    with pytest.raises(DataError, match=f"to train, give {tmp_path / 'data/OK'};"):
        train(tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(tmp_path / "data", tmp_path / "run", all_good=True).header.images == images(5)
    assert train(tmp_path / "data/OK", tmp_path / "other").header.images == images(4)


def test_train_logs_what_a_label_file_misses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_good(tmp_path / "data", 8)
    rows = [f"{number},1" for number in range(6)]
    put_text(tmp_path / "data/labels.csv", "\n".join(["id,good", *rows, "77,0", "78,1"]))
    with caplog.at_level(logging.INFO, "metalad"):
        train(tmp_path / "data", tmp_path / "run")
    listing = tmp_path / "data/labels.csv"
    assert f"2 rows of {listing} without an image" in caplog.messages
    assert f"2 images not listed in {listing} and not used, such as {tmp_path / 'data/006.png'}" in caplog.messages


def evaluate(category: Path) -> Report:
    return metalad.evaluate(train(category, category.parent / "run"), category, device="cpu")


def test_evaluate_has_no_notes_about_faultless_data(category: Path) -> None:
    assert not [note for note in evaluate(category).notes if "mask" in note or "left out" in note]


def test_evaluate_notes_the_files_and_masks_that_are_left_out(category: Path) -> None:
    (category / "test/crack/x.gif").touch()
    (category / "train/good/x.gif").touch()
    put_mask(category / "ground_truth/crack/009_mask.png")
    notes = evaluate(category).notes
    assert "1 file left out: 1 .gif." in notes
    assert any(note.startswith("1 mask without an anomalous image, such as") for note in notes)


def test_evaluate_notes_empty_cut_and_inverted_masks(category: Path) -> None:
    truth = category / "ground_truth/crack"
    put_square(truth / "000_mask.png", 0)
    blurred = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(64, axis=0)
    blurred[:60] = 255
    Image.fromarray(blurred).save(truth / "001_mask.png")
    put_square(truth / "002_mask.png", 60)
    notes = evaluate(category).notes
    assert "1 anomalous image with an empty mask; pixel metrics leave them out." in notes
    assert "1 mask with many gray levels; pixels above half brightness are taken as anomalous." in notes
    assert any(note.startswith("More than half of the pixels are anomalous in 2 of 3 masks") for note in notes)


def test_a_mask_that_is_empty_at_the_resolution_of_the_model_takes_no_part_in_its_metrics(category: Path) -> None:
    """The only anomalous pixel of the image lies between the centers of the pixels of the resized mask."""
    model = train(category, category.parent / "run")
    truth = category / "ground_truth/crack/000_mask.png"
    put_square(truth, 1)
    with_small = metalad.evaluate(model, category, device="cpu")
    assert any("so small that its mask is empty at the model's resolution" in note for note in with_small.notes)
    truth.unlink()
    without = metalad.evaluate(model, category, device="cpu")
    pixels = [name for name in vars(without.chosen.metrics_model) if name.startswith("pixel_")]
    assert pixels
    for name in pixels:
        assert getattr(with_small.chosen.metrics_model, name) == getattr(without.chosen.metrics_model, name)
    assert with_small.chosen.metrics_original != without.chosen.metrics_original
    put_square(truth, 0)
    empty = metalad.evaluate(model, category, device="cpu").chosen
    assert empty.metrics_model == without.chosen.metrics_model
    assert empty.metrics_original == without.chosen.metrics_original


@pytest.mark.parametrize("name", ["good", "ok", "Normal", "PASS"])
def test_good_test_images_under_other_names_are_no_defects(category: Path, name: str) -> None:
    (category / "test/good").rename(category / "test/renamed")
    (category / "test/renamed").rename(category / "test" / name)
    report = evaluate(category)
    assert sum(not image.label for image in report.images) == 3
    assert [row.defect for row in report.chosen.per_defect] == ["crack"]


def test_predict_leaves_masks_out_and_logs_that(category: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_square(category / "test/crack/000_mask.png", 4)
    (category / "test/crack/x.gif").touch()
    with caplog.at_level(logging.INFO, "metalad"):
        sources = list(find_sources([category], category.parent / "out"))
    assert len(sources) == 6 + 3 + 3
    assert not [source for source in sources if "mask" in source.path.name]
    assert caplog.messages == ["5 files left out: 4 masks, 1 .gif"]


def test_predict_refuses_a_folder_of_masks(category: Path) -> None:
    with pytest.raises(DataError, match=r"no images in .*ground_truth; .*; 3 files left out: 3 masks"):
        find_sources([category / "ground_truth"], category.parent / "out")
    mask = category / "ground_truth/crack/000_mask.png"
    assert [source.path for source in find_sources([mask], category.parent / "out")] == [mask]


def test_a_model_leaves_masks_in_a_folder_out_and_logs_that(category: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = train(category, category.parent / "run")
    with caplog.at_level(logging.INFO, "metalad"):
        results = list(model.predict(category, stream=True))
    assert len(results) == 6 + 3 + 3
    assert "3 files left out: 3 masks" in caplog.messages
