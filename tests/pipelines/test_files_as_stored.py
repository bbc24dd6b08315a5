"""Pages, alpha channels, white levels and copies of training images, through train, evaluate, predict and the API."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import metalad
from metalad.data.images import find_images, read_image
from metalad.data.reading import ALPHA_NOTE, FRAMES_NOTE
from metalad.runtime.errors import ImageError
from tests.cookies import put_cookies
from tests.tiny import tiny_category

FAST: dict[str, Any] = {"method": "variation_model", "image_size": 32}


def save_pages(path: Path, sources: list[Path]) -> Path:
    first, *others = (Image.open(source).convert("RGB") for source in sources)
    first.save(path, save_all=True, append_images=others)
    return path


def save_without_alpha(path: Path, source: Path) -> Path:
    """Save an image with a fourth channel of 0, as cameras write it."""
    pixels = read_image(source)
    Image.fromarray(np.dstack([pixels, np.zeros_like(pixels[:, :, :1])]), "RGBA").save(path)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return find_images(put_cookies(tmp_path_factory.mktemp("good"), 14))


@pytest.fixture(scope="module")
def run(good: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    metalad.train(good[0].parent, out, **FAST)
    return out


@pytest.mark.parametrize("workers", [None, 1])
def test_predict_scores_each_page_as_its_own_image(
    run: Path, good: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int | None
) -> None:
    (tmp_path / "images").mkdir()
    scan = save_pages(tmp_path / "images" / "scan.tif", good[:3])
    flat = save_without_alpha(tmp_path / "images" / "flat.png", good[3])
    expected = [result.score for result in metalad.load(run).predict(good[:4])]
    results = list(metalad.predict(run, [scan.parent], tmp_path / "out", strict=True, workers=workers))
    scores = {result.path.name: result.score for result in results if result.path}
    assert scores == dict(zip(["scan.tif[1]", "scan.tif[2]", "scan.tif[3]", "flat.png"], expected, strict=True))
    assert (tmp_path / "out" / "maps" / "scan[2].png").is_file()
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line.get("notes") for line in lines] == [[ALPHA_NOTE], None, None, None]
    assert f"1 image {ALPHA_NOTE}, such as {flat}" in caplog.messages
    (one,) = metalad.predict(run, [f"{scan}[2]"], tmp_path / "one")
    assert one.score == expected[1]


def test_the_api_scores_pages_of_a_folder_and_the_first_page_of_a_path(
    run: Path, good: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scan = save_pages(tmp_path / "scan.tif", good[:3])
    model = metalad.load(run)
    expected = [result.score for result in model.predict(good[:3])]
    assert [result.score for result in model.predict(tmp_path)] == expected
    assert caplog.messages == []
    assert model.predict(scan).score == expected[0]
    assert caplog.messages == [f"1 image {FRAMES_NOTE}, such as {scan}"]
    assert model.predict(f"{scan}[3]").score == expected[2]
    with pytest.raises(ImageError, match="3 pages or frames, but one is read"):
        model.predict(scan, strict=True)


def test_train_notes_files_with_several_pages_and_refuses_them_if_strict(
    good: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = put_cookies(tmp_path / "good", 12)
    scan = save_pages(folder / "scan.tif", good[12:14])
    with pytest.raises(ImageError, match=r"scan.tif: 2 pages or frames"):
        metalad.train(folder, tmp_path / "strict", strict=True, **FAST)
    caplog.set_level(logging.INFO, "metalad")
    metalad.train(folder, tmp_path / "run", **FAST)
    assert f"1 image {FRAMES_NOTE}, such as {scan}" in caplog.messages


def test_evaluate_notes_pages_and_copies_of_training_images(tmp_path: Path) -> None:
    category = tiny_category(tmp_path / "data", train=12, good=3)
    train = find_images(category / "train" / "good")
    model = metalad.train(category, tmp_path / "run", **FAST)
    assert not any("identical" in note for note in metalad.evaluate(model, category).notes)
    Image.open(train[0]).save(category / "test" / "good" / "copy.png")
    scan = save_pages(category / "test" / "good" / "scan.tif", find_images(category / "test" / "good")[:2])
    report = metalad.evaluate(tmp_path / "run", category, out=tmp_path / "report")
    copy = category / "test" / "good" / "copy.png"
    (note,) = (note for note in report.notes if "identical" in note)
    assert note == f"1 test image identical to training images, which makes the metrics too good: {copy}."
    assert any(note == f"1 image {FRAMES_NOTE}, such as {scan}." for note in report.notes)
    assert "image_hashes" not in json.loads((tmp_path / "report" / "report.json").read_text())["settings"]
    with pytest.raises(ImageError, match=r"scan.tif: 2 pages or frames"):
        metalad.evaluate(model, category, strict=True)


def test_evaluate_and_predict_use_the_white_level_of_the_model(tmp_path: Path) -> None:
    category = tiny_category(tmp_path / "eight", train=12, good=3)
    shutil.copytree(category, tmp_path / "twelve")
    for path in find_images(tmp_path / "twelve"):
        if "ground_truth" not in path.parts:
            gray = np.asarray(Image.open(path).convert("L"))
            path.unlink()
            Image.fromarray(np.rint(gray * (4095 / 255)).astype(np.uint16)).save(path.with_suffix(".png"))
            other = tmp_path / "eight" / path.relative_to(tmp_path / "twelve")
            other.unlink()
            Image.fromarray(gray).save(other.with_suffix(".png"))
    scores = {}
    for name in ("eight", "twelve"):
        model = metalad.train(tmp_path / name, tmp_path / f"run-{name}", **FAST)
        report = metalad.evaluate(model, tmp_path / name, out=tmp_path / f"report-{name}")
        files = metalad.predict(model, [tmp_path / name / "test"], tmp_path / f"out-{name}")
        scores[name] = ([image.score for image in report.images], [result.score for result in files])
    assert scores["twelve"] == scores["eight"]
    assert metalad.load(tmp_path / "run-twelve").header.white_level == 4095
