"""The model of the public API: one image gets one score, to the last bit, however it is given; streams; errors."""

import gc
import itertools
import json
import logging
import math
import pickle
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metalad
from metalad.cli.main import main
from metalad.data.formats import readable_names
from metalad.data.images import find_images, read_image
from metalad.data.reading import Reading
from metalad.detectors.base import DetectorConfig
from metalad.methods.metal_features import MetalFeaturesConfig
from metalad.pipelines import model as module
from metalad.pipelines.fit import fit
from metalad.pipelines.model import Model
from metalad.pipelines.predict import predict
from metalad.results.prediction import Result
from metalad.runtime.errors import ConfigError, DataError, ImageError
from tests.data.pictures import STORED, as_stored
from tests.tiny import COOKIES, TINY

METHODS: dict[str, DetectorConfig] = {
    "metal_features": MetalFeaturesConfig(image_size=(48, 64), smoothing_sigma=2.0, codebook_size=64, context_steps=20),
    "metal": TINY,
}


@pytest.fixture(scope="module", params=METHODS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A stored model of each method."""
    images = find_images(COOKIES / "train" / "good")[:8]
    fitted = fit(images, method=METHODS[request.param], epochs=1, false_alarms=0.2, device="cpu", precision="fp32")
    fitted.save(tmp_path_factory.mktemp("run") / "model.safetensors")
    return fitted


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    fitted = fit(find_images(COOKIES / "train" / "good")[:4], method=TINY, epochs=1, device="cpu", precision="fp32")
    fitted.save(tmp_path_factory.mktemp("run") / "model.safetensors")
    return fitted


@pytest.fixture(scope="module")
def cookie() -> Path:
    return find_images(COOKIES / "test" / "anomaly")[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of six images, in two folders."""
    for number, image in enumerate(find_images(COOKIES / "test")[::8]):
        target = tmp_path / "images" / ("a" if number % 2 else "b") / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    assert len(find_images(tmp_path / "images")) == 6
    return tmp_path / "images"


def same(result: Result, expected: Result) -> None:
    """Check that two results are equal to the last bit."""
    assert result.score == expected.score
    assert result.threshold == expected.threshold
    np.testing.assert_array_equal(result.anomaly_map, expected.anomaly_map)
    assert result.regions == expected.regions
    assert result.overlay().tobytes() == expected.overlay().tobytes()


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)))


def representations(pixels: np.ndarray) -> dict[str, Any]:
    return {
        "uint8": pixels,
        "float32": pixels.astype(np.float32) / 255,
        "float64": pixels / 255,
        "Pillow": Image.fromarray(pixels),
        "tensor": tensor(pixels),
        "float tensor": tensor(pixels).float() / 255,
    }


# One image


def test_every_representation_of_an_image_gives_the_same_bits(model: Model, cookie: Path) -> None:
    expected = model.predict(cookie)
    assert expected.score > 0
    for name, value in representations(read_image(cookie)).items():
        result = model.predict(value)
        same(result, expected)
        assert result.path is None, name
    with Image.open(cookie) as image:
        same(model.predict(image), expected)
    assert model.predict(str(cookie)).path == expected.path == cookie


def test_a_stream_a_list_and_batches_give_the_bits_of_single_calls(model: Model, folder: Path) -> None:
    paths = find_images(folder)
    expected = [model.predict(path) for path in paths]
    assert len({result.score for result in expected}) == 6
    mixed = [value for path in paths for value in representations(read_image(path)).values()]
    for results in (model.predict(paths), list(model.predict(iter(paths), stream=True)), model.predict(folder)):
        for result, one in zip(results, expected, strict=True):
            same(result, one)
    for result, one in zip(model.predict(mixed), [one for one in expected for _ in range(6)], strict=True):
        same(result, one)


def test_a_batch_gives_the_bits_of_single_calls_at_its_size(model: Model, folder: Path) -> None:
    paths = find_images(folder)
    for result, path in zip(model.predict(paths, batch_size=4), paths, strict=True):
        same(result, model.predict(path, batch_size=4))
        assert result.score == pytest.approx(model.predict(path).score, rel=1e-4)


def test_predict_into_files_and_the_command_line_give_the_same_bits(
    model: Model, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = model.predict(folder)
    results = list(predict(model, [folder], tmp_path / "out", device="cpu"))
    assert model.path is not None
    line = ["predict", str(model.path), str(folder), "--out", str(tmp_path / "command"), "--device", "cpu", "--quiet"]
    assert main(line) == 0
    capsys.readouterr()
    for out in (tmp_path / "out", tmp_path / "command"):
        lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
        for values, result in zip(lines, expected, strict=True):
            assert {name: values[name] for name in result.to_dict()} == result.to_dict()
    for written, result in zip(results, expected, strict=True):
        saved = result.save(tmp_path / "saved", name=f"{written.path}".replace("/", "-"))
        for one, other in ((written.map, saved.map), (written.overlay, saved.overlay)):
            assert one is not None
            assert other is not None
            assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_an_image_with_an_orientation_is_scored_upright(
    tiny: Model, cookie: Path, tmp_path: Path, kind: str, orientation: int
) -> None:
    upright = read_image(cookie)[:120, :80]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "rotated"
    Image.fromarray(as_stored(upright, orientation)).save(path, kind, exif=exif, **options)
    expected = tiny.predict(path)
    assert expected.anomaly_map.shape == (120, 80)
    same(tiny.predict(read_image(path)), expected)
    with Image.open(path) as image:
        same(tiny.predict(image), expected)
    if kind != "JPEG":
        same(tiny.predict(upright), expected)
    assert set(STORED) >= {orientation}


def test_16_bit_gray_is_scored_as_its_bytes(tiny: Model, tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 65536, (40, 50), np.uint16)
    for suffix in ("png", "tif"):
        path = tmp_path / f"gray.{suffix}"
        Image.fromarray(gray).save(path)
        expected = tiny.predict(path)
        with Image.open(path) as image:
            same(tiny.predict(image), expected)
        same(tiny.predict(Image.fromarray(gray)), expected)
        same(tiny.predict(gray.astype(np.float32) / 65535), expected)  # the remedy of the error for uint16
        same(tiny.predict(torch.from_numpy(gray.astype(np.float32)) / 65535), expected)


def test_palettes_and_transparency_are_scored_as_the_file(tiny: Model, cookie: Path, tmp_path: Path) -> None:
    color = Image.fromarray(read_image(cookie)[:90, :100])
    alpha = color.copy()
    alpha.putalpha(Image.fromarray(np.tile(np.arange(0, 200, 2, dtype=np.uint8), (90, 1))))
    for number, image in enumerate((color.quantize(16), alpha, alpha.convert("LA"), color.convert("1"))):
        path = tmp_path / f"{number}.png"
        image.save(path)
        expected = tiny.predict(path)
        same(tiny.predict(image), expected)
        same(tiny.predict(read_image(path)), expected)
    color.quantize(16).save(tmp_path / "transparent.png", transparency=1)
    with Image.open(tmp_path / "transparent.png") as image:
        same(tiny.predict(image), tiny.predict(tmp_path / "transparent.png"))


def test_a_large_image_is_read_again_for_the_same_overlay(
    tiny: Model, cookie: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = tiny.predict(cookie)
    monkeypatch.setattr("metalad.inference.stream.HELD_PIXELS", 10)
    same(tiny.predict(cookie), held)
    same(tiny.predict(read_image(cookie)), held)


@pytest.mark.parametrize("held_pixels", [1, 10**9])
def test_results_can_be_pickled_with_their_image(
    tiny: Model, cookie: Path, monkeypatch: pytest.MonkeyPatch, held_pixels: int
) -> None:
    """As a process pool does that calls `predict`; an image that is not held is read again."""
    monkeypatch.setattr("metalad.inference.stream.HELD_PIXELS", held_pixels)
    for result in (tiny.predict(cookie), *tiny.predict([cookie, np.asarray(Image.open(cookie))])):
        same(pickle.loads(pickle.dumps(result)), result)


def test_a_result_does_not_change_with_the_array_that_it_was_computed_from(tiny: Model, cookie: Path) -> None:
    expected, pixels = tiny.predict(cookie), read_image(cookie)
    result = tiny.predict(pixels)
    pixels[:] = 0
    same(result, expected)


def test_scoring_and_false_alarms_choose_score_and_threshold(model: Model, cookie: Path) -> None:
    own, raw, rare = (
        model.predict(cookie),
        model.predict(cookie, scoring="raw"),
        model.predict(cookie, false_alarms=0.001),
    )
    assert own.threshold == model.threshold == model.threshold_for(0.2)
    assert (rare.score, rare.threshold) == (own.score, model.threshold_for(0.001))
    assert rare.threshold > own.threshold
    assert raw.threshold == model.threshold_for(0.2, "raw") == model.header.thresholds["raw"]
    if model.method == "metal":  # the raw score of metal_features is calibrated already
        assert raw.score != own.score
    assert not np.array_equal(raw.anomaly_map, own.anomaly_map)


# Many images


def test_a_given_threshold_decides(model: Model, cookie: Path) -> None:
    score = model.predict(cookie).score
    for threshold, is_anomalous in ((score, False), (score * 0.999, True)):
        result = model.predict(cookie, threshold=threshold)
        assert (result.threshold, result.is_anomalous) == (threshold, is_anomalous)
        (streamed,) = model.predict([cookie], stream=True, threshold=threshold)
        assert streamed.threshold == threshold
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"threshold is .*{value}"):
            model.predict(cookie, threshold=value)
    with pytest.raises(ConfigError, match="threshold and false_alarms exclude each other"):
        model.predict(cookie, threshold=1.0, false_alarms=0.1)


def test_folders_patterns_and_lists_give_the_same_results_in_order(tiny: Model, folder: Path) -> None:
    paths = find_images(folder)
    for value in (folder, str(folder), [folder / "a", folder / "b"], str(folder / "**" / "*.jpg"), folder / "?" / "*"):
        results = tiny.predict(value)
        assert [result.path for result in results] == paths
    (one,) = tiny.predict(folder / "a" / "1*")
    assert one.path == folder / "a" / "1.jpg"
    mixed = [folder / "a", read_image(paths[0]), str(paths[1]), Image.open(paths[2]), str(folder / "b" / "*.jpg")]
    assert [result.path for result in tiny.predict(mixed)] == [*paths[:3], None, paths[1], None, *paths[3:]]


def test_a_file_whose_name_looks_like_a_pattern_is_one_image(tiny: Model, cookie: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(cookie, tmp_path / "part[1].jpg"))
    assert tiny.predict(path).path == path
    assert tiny.predict([path])[0].path == path


def test_one_image_can_be_streamed(tiny: Model, cookie: Path) -> None:
    for value in (cookie, read_image(cookie)):
        (result,) = tiny.predict(value, stream=True)
        same(result, tiny.predict(cookie))


def test_nothing_to_score_is_an_empty_list_or_an_error(tiny: Model, tmp_path: Path) -> None:
    assert tiny.predict([]) == []
    assert list(tiny.predict(iter(()), stream=True)) == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    for value in (tmp_path / "empty", tmp_path / "*.png", [tmp_path / "empty"]):
        with pytest.raises(DataError, match=r"no images in .*; give a folder or a pattern that contains image files"):
            tiny.predict(value)


def test_unreadable_files_are_left_out_with_a_warning_unless_strict(
    tiny: Model, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = folder / "a" / "3.jpg"
    broken.write_text("no image")
    message = f"cannot read {broken}: not a {readable_names()} image"
    with caplog.at_level(logging.WARNING, "metalad"):
        results = tiny.predict(folder)
    assert [result.path for result in results] == [path for path in find_images(folder) if path != broken]
    assert [(record.name, record.levelname) for record in caplog.records] == [("metalad", "WARNING")]
    assert caplog.messages == [f"skipped: {message}"]
    with pytest.raises(ImageError) as failure:
        tiny.predict(folder, strict=True)
    assert str(failure.value) == message
    assert (failure.value.path, failure.value.reason) == (broken, f"not a {readable_names()} image")
    stream = tiny.predict(folder, stream=True, strict=True)
    assert next(stream).path == folder / "a" / "1.jpg"
    with pytest.raises(ImageError):
        next(stream)


def test_one_unreadable_or_missing_file_is_an_error(tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    for name, reason in (("broken.png", "not a PNG"), ("missing.png", "no such file")):
        with pytest.raises(ImageError, match=f"cannot read .*{name}: {reason}"):
            tiny.predict(tmp_path / name)


# Streams


@pytest.fixture
def _two_workers() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_two_workers")
def test_an_infinite_iterator_is_taken_lazily(tiny: Model) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    alive, taken = 0, 0

    class Frame(np.ndarray[Any, Any]):
        """An array that is counted as long as it is alive."""

    def forget() -> None:
        nonlocal alive
        alive -= 1

    def endless() -> Iterator[np.ndarray]:
        nonlocal alive, taken
        while True:
            made = frame.copy().view(Frame)
            alive, taken = alive + 1, taken + 1
            weakref.finalize(made, forget)
            yield made

    stream = tiny.predict(endless(), stream=True)
    assert taken == 0
    for count, result in enumerate(itertools.islice(stream, 60), start=1):
        assert result.score > 0
        assert count <= taken <= count + 10
        assert alive <= 12
    stream.close()
    assert taken <= 70
    del result
    gc.collect()
    assert alive == 0


@pytest.mark.usefixtures("_two_workers")
def test_memory_of_a_stream_does_not_grow_with_its_length(
    tiny: Model, cookie: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = 0

    def forget() -> None:
        nonlocal alive
        alive -= 1

    def reading(path: Path, _: Reading) -> np.ndarray:
        nonlocal alive
        pixels = read_image(path)
        alive += 1
        weakref.finalize(pixels, forget)
        return pixels

    monkeypatch.setattr(module, "read_image", reading)
    most = []
    for result in tiny.predict(itertools.repeat(cookie, 40), stream=True):
        assert result.score > 0
        most.append(alive)
    del result
    assert max(most[20:]) <= max(most[:20]) <= 12
    gc.collect()
    assert alive == 0


def test_an_iterator_may_reuse_its_buffer_and_close_its_files(tiny: Model, folder: Path) -> None:
    paths = find_images(folder)
    expected = tiny.predict(paths)
    buffer = np.zeros((341, 256, 3), np.uint8)

    def frames() -> Iterator[np.ndarray]:
        for path in paths:
            buffer[:] = read_image(path)
            yield buffer

    def files() -> Iterator[Image.Image]:
        for path in paths:
            with Image.open(path) as image:
                yield image

    for images in (frames(), files()):
        for result, one in zip(tiny.predict(images, stream=True), expected, strict=True):
            same(result, one)


def test_an_error_of_the_iterator_is_raised(tiny: Model, cookie: Path) -> None:
    def failing() -> Iterator[Path]:
        yield cookie
        raise OSError("the camera was unplugged")

    with pytest.raises(OSError, match="the camera was unplugged"):
        list(tiny.predict(failing(), stream=True))


# Misreadings

WRONG: list[tuple[Any, str]] = [
    (np.full((9, 9, 3), 255.0), "the image is of float64 with values from 255 to 255; floats must be in [0, 1]"),
    (np.full((9, 9, 3), -0.5), "the image is of float64 with values from -0.5 to -0.5; floats must be in [0, 1]"),
    (np.full((9, 9, 3), np.nan), "the image is of float64 with values from nan to nan; floats must be in [0, 1]"),
    (np.zeros((3, 9, 9), np.uint8), "the image is an array [3, 9, 9], channels first; give [height, width, 3]"),
    (torch.zeros(9, 9, 3), "the image is a tensor [9, 9, 3], channels last; give [3, height, width]"),
    (np.zeros((9, 9, 4), np.uint8), "the image has four channels [9, 9, 4]; give RGB"),
    (np.zeros((9, 9, 1), np.uint8), "the image is [9, 9, 1]; give a gray image as [height, width]"),
    (np.zeros((2, 9, 9, 3), np.uint8), "the image is an array [2, 9, 9, 3], a batch; give its images one by one"),
    (torch.zeros(2, 3, 9, 9), "the image is a tensor [2, 3, 9, 9], a batch; give its images one by one, as list(x)"),
    (np.zeros((9, 9, 3), np.int64), "the image is of int64; give uint8, uint16, or floats in [0, 1]"),
    (np.zeros((9, 9, 3), bool), "the image is of bool; give uint8, uint16, or floats in [0, 1]"),
    (np.zeros((7, 9, 3), np.uint8), "the image is 7 × 9 pixels; give at least 8 a side"),
]


@pytest.mark.parametrize(("value", "message"), WRONG, ids=[message[10:40] for _, message in WRONG])
def test_a_misreading_is_an_error_that_states_the_remedy(tiny: Model, value: Any, message: str) -> None:
    with pytest.raises(DataError) as failure:
        tiny.predict(value)
    assert str(failure.value).startswith(message)
    with pytest.raises(DataError) as failure:
        tiny.predict([np.zeros((9, 9), np.uint8), value])
    assert str(failure.value).startswith(message.replace("the image", "x[1]", 1))


def test_the_suggested_remedies_work(tiny: Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), np.uint8)
    expected = tiny.predict(pixels[..., :3])
    same(tiny.predict(np.moveaxis(np.moveaxis(pixels[..., :3], -1, 0), 0, -1)), expected)
    same(tiny.predict(torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1)), expected)
    bgr = np.concatenate([pixels[..., 2::-1], pixels[..., 3:]], axis=2)
    same(tiny.predict(bgr[..., 2::-1]), expected)
    (first, _) = tiny.predict(list(np.stack([pixels[..., :3]] * 2)))
    same(first, expected)
    (first, _) = tiny.predict(list(torch.from_numpy(np.stack([pixels[..., :3]] * 2)).permute(0, 3, 1, 2)))
    same(first, expected)


def test_values_that_are_no_images_are_errors(tiny: Model) -> None:
    for value, message in (
        (3, "x is a int; give a path, an array, a Pillow image, a tensor, or many of them"),
        (None, "x is a NoneType; give a path"),
        ([1, 2], r"x\[0\] is a int; give paths, arrays, Pillow images or tensors"),
        ([[np.zeros((9, 9))]], r"x\[0\] is a list; give paths"),
    ):
        with pytest.raises(DataError, match=message):
            tiny.predict(value)


def test_impossible_settings_are_errors(tiny: Model, cookie: Path) -> None:
    for size in (0, -1):
        with pytest.raises(ConfigError, match=f"batch_size is {size}; it must be at least 1"):
            tiny.predict(cookie, batch_size=size)
    for rate in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match=f"false_alarms is {rate}; it is a probability between 0 and 1"):
            tiny.predict(cookie, false_alarms=rate)
        with pytest.raises(ConfigError, match="false_alarms is"):
            tiny.threshold_for(rate)


# The model


def test_save_and_load_give_the_same_bits(model: Model, folder: Path, tmp_path: Path) -> None:
    expected = model.predict(folder)
    before = model.path
    copy = metalad.load(model.save(tmp_path / "copy.safetensors"), device="cpu")
    assert (model.path, copy.path) == (tmp_path / "copy.safetensors",) * 2
    assert before is not None
    assert before.read_bytes() == (tmp_path / "copy.safetensors").read_bytes()
    assert copy.header == model.header
    for result, one in zip(copy.predict(folder), expected, strict=True):
        same(result, one)
    model.save(before)


def test_the_model_describes_itself(tiny: Model) -> None:
    assert (tiny.method, tiny.image_size, tiny.images) == ("metal", (32, 32), 3)
    assert tiny.settings["patch_size"] == 8
    assert tiny.settings == tiny.header.config
    assert tiny.stored.detector.config == TINY
    assert tiny.threshold == tiny.header.thresholds["calibrated"]
    assert repr(tiny) == f"<metalad.Model metal, 3 images, 32x32, threshold {tiny.threshold:.4g}>"
    assert tiny.caution() is not None
    assert tiny.caution(0.9) is None


def test_a_notebook_shows_method_threshold_and_caution(tiny: Model) -> None:
    shown = tiny._repr_html_()
    for text in (
        "<th>method</th><td>metal</td>",
        "<th>trained on</th><td>3 good images</td>",
        "<th>image size</th><td>32 × 32 px</td>",
        f"<td>{tiny.threshold:.4g}, for 1 % false alarms</td>",
        "<th>caution</th>",
    ):
        assert text in shown
    assert shown.startswith("<table>")
    assert shown.endswith("</table>")


def test_predict_into_files_needs_a_stored_model(tiny: Model, cookie: Path, tmp_path: Path) -> None:
    fitted = fit(find_images(COOKIES / "train" / "good")[:2], method=TINY, epochs=1, device="cpu", precision="fp32")
    with pytest.raises(ConfigError, match=r"needs a stored model; save it first, or use model\.predict"):
        predict(fitted, [cookie], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (result,) = predict(tiny, [cookie], tmp_path / "out")
    assert result.score == tiny.predict(cookie).score
