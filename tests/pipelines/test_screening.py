"""Training images that stand out, are identical or of a single color, and the white level of 16-bit files."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import metalad
from metalad.data.images import find_images, read_image
from metalad.detectors.outliers import standing_out
from metalad.detectors.residuals import Residuals
from metalad.methods.variation_model import VariationModel
from metalad.nn.pixels import Pixels, subsampled
from metalad.runtime.errors import DataError
from tests.cookies import cookies, put_cookies

FAST: dict[str, Any] = {"method": "variation_model", "image_size": 32}


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_defective_bottles_among_the_training_images_are_named_with_a_picture(
    shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bottle, good = shared_data / "mvtec" / "bottle", tmp_path / "good"
    good.mkdir()
    for path in find_images(bottle / "train" / "good")[:37]:
        shutil.copy(path, good / path.name)
    defective = find_images(bottle / "test" / "broken_large")
    for number in (0, 5, 9):
        shutil.copy(defective[number], good / f"planted{number}{defective[number].suffix}")
    with caplog.at_level(logging.INFO, "metalad"):
        metalad.train(good, tmp_path / "run", method="padim", image_size=64, channels=40, device="cpu")
    pictures = tmp_path / "run" / "outliers"
    assert {path.name[3:] for path in pictures.iterdir()} == {"planted0.jpg", "planted5.jpg", "planted9.jpg"}
    assert read_image(next(pictures.iterdir())).shape == (256, 512, 3)
    lines = warnings_of(caplog)
    summary = f"3 training images stand out (pictures in {pictures}); remove those with defects, and train again"
    first = lines.index(summary)
    named = [Path(line.strip().split(":")[0]).stem for line in lines[first + 1 : first + 4]]
    assert sorted(named) == ["planted0", "planted5", "planted9"]
    assert "times the median" in lines[first + 1]
    assert summary in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["bottle", "pill"])
def test_hardly_any_image_of_a_clean_set_is_named(shared_data: Path, name: str) -> None:
    paths = find_images(shared_data / "mvtec" / name / "train" / "good")[:120]
    model = metalad.fit(paths, method="variation_model", image_size=64)
    scores = model.stored.detector.get_buffer("normal_scores_calibrated").numpy().astype(np.float64)
    assert len(standing_out(scores)) <= 2


def test_identical_images_and_images_of_a_single_color_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = put_cookies(tmp_path / "good", 12)
    shutil.copy(good / "000.png", good / "copy.png")
    Image.open(good / "001.png").save(good / "resaved.bmp")
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(good / "black.png")
    metalad.train(good, tmp_path / "run", **FAST)
    lines = warnings_of(caplog)
    assert f"1 training image of a single color: {good / 'black.png'}" in lines
    (line,) = (line for line in lines if "identical to another one" in line)
    assert line.startswith("2 training images identical to another one: ")
    for pair in (("000.png", "copy.png"), ("001.png", "resaved.bmp")):
        assert all(str(good / each) in line for each in pair)
    caplog.clear()
    metalad.fit([read_image(path) for path in find_images(good)], **FAST)
    assert "1 training image of a single color: images[12]" in warnings_of(caplog)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((32, 40, 3), np.uint8), "all 4 training images are of a single color"),
        (np.arange(32 * 40 * 3).reshape(32, 40, 3).astype(np.uint8), "all 4 training images are identical, such as"),
    ],
)
def test_images_that_are_all_identical_or_of_a_single_color_are_refused(
    tmp_path: Path, pixels: np.ndarray, message: str
) -> None:
    (tmp_path / "good").mkdir()
    for number in range(4):
        Image.fromarray(pixels).save(tmp_path / "good" / f"{number}.png")
    with pytest.raises(DataError, match=message):
        metalad.train(tmp_path / "good", tmp_path / "run", **FAST)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(DataError, match=message):
        metalad.fit([pixels] * 4, **FAST)


def test_a_useless_threshold_is_an_error_that_names_the_images_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = put_cookies(tmp_path / "good", 14)
    Image.fromarray(np.full((32, 40, 3), 255, np.uint8)).save(good / "white.png")
    monkeypatch.setattr("metalad.detectors.outliers.MAX_RATIO", 2.0)
    with pytest.raises(DataError, match=r"the threshold is .*; remove defective and damaged ones") as error:
        metalad.train(good, tmp_path / "run", **FAST)
    assert str(good / "white.png") in str(error.value)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("scored", [3, 5, 9])
def test_the_right_image_is_named_if_fitting_returns_residuals_of_some_images_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, scored: int
) -> None:
    """Methods that hold features in memory may return fewer out-of-fold residuals than there are images."""
    fit = VariationModel.fit

    def fit_on_some(self: VariationModel, pixels: Pixels, seed: int) -> Residuals:
        fit(self, pixels, seed)
        return self.residuals_of(subsampled(pixels, scored))

    images = list(cookies(17))
    images[8] = np.full_like(images[8], 255)
    monkeypatch.setattr(VariationModel, "fit", fit_on_some)
    monkeypatch.setattr("metalad.pipelines.screening.useless_threshold", lambda *_: None)
    monkeypatch.setattr("metalad.pipelines.screening.standing_out", lambda scores: [np.argmax(scores)])
    metalad.fit(images, **FAST)
    (named,) = (line for line in warnings_of(caplog) if "times the median" in line)
    assert named.strip().startswith("images[8]: ")


def twelve_bits(source: Path, target: Path) -> None:
    """Save an image as gray PNG with 12 bits in 16, and with 8 bits."""
    gray = np.asarray(Image.open(source).convert("L"))
    target.parent.mkdir(parents=True, exist_ok=True)
    (target.parent.parent / "eight").mkdir(exist_ok=True)
    Image.fromarray(gray).save(target.parent.parent / "eight" / target.name)
    Image.fromarray(np.rint(gray * (4095 / 255)).astype(np.uint16)).save(target)


def test_12_bits_in_a_16_bit_file_give_the_scores_of_8_bits(shared_data: Path, tmp_path: Path) -> None:
    paths = find_images(shared_data / "mvtec" / "bottle" / "train" / "good")[:24]
    for path in paths:
        twelve_bits(path, tmp_path / "twelve" / f"{path.stem}.png")
    runs = {name: metalad.train(tmp_path / name, tmp_path / f"run-{name}", **FAST) for name in ("twelve", "eight")}
    assert runs["twelve"].header.white_level == 4095
    assert runs["eight"].header.white_level == 65535
    assert runs["twelve"].threshold == runs["eight"].threshold
    names = [f"{path.stem}.png" for path in paths]
    expected = [result.score for result in runs["eight"].predict([tmp_path / "eight" / name for name in names])]
    stored = metalad.load(tmp_path / "run-twelve")
    deep = [tmp_path / "twelve" / name for name in names]
    assert [result.score for result in stored.predict(deep)] == expected
    arrays = [np.asarray(Image.open(path)).astype(np.uint16) for path in deep]
    assert [result.score for result in stored.predict(arrays)] == expected
    assert [result.score for result in stored.predict([Image.open(path) for path in deep])] == expected
    for images in (arrays, deep):
        fitted = metalad.fit(images, **FAST)
        assert fitted.header.white_level == 4095
        assert fitted.predict(deep[0]).score == metalad.fit(deep, **FAST).predict(arrays[0]).score


def test_values_above_the_white_level_of_the_model_are_clipped_and_noted(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 1024, (20, 30)).astype(np.uint16) for _ in range(12)]
    model = metalad.fit(images, **FAST)
    assert model.header.white_level == 1023
    bright = images[0].copy()
    bright[0, 0] = 1023
    reference = model.predict(bright)
    bright[0, 0] = 5000
    caplog.clear()
    assert model.predict(bright).score == reference.score
    assert warnings_of(caplog) == ["1 image with 16-bit values above 1023, which are clipped, such as the image"]
