"""predict: order, names, what the files hold, what stops it, and memory that the number of images does not move."""

import gc
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import UInt8
from PIL import Image

from metalad.data import Sample, load_images
from metalad.data.images import image_size, read_image, resize_map
from metalad.detectors.base import Detector, Scoring
from metalad.methods.metal import Metal
from metalad.nn.pixels import to_batch
from metalad.pipelines.demo import DATA
from metalad.pipelines.predict import PredictedImage, predict, sources
from metalad.pipelines.predict import pipeline as module
from metalad.pipelines.predict.pipeline import Judge, Writer, draw_overlay, predict_sources, to_steps
from metalad.pipelines.predict.sources import Source, find_sources
from metalad.runtime.errors import ConfigError, DataError, ImageError, ModelFileError, RunError
from metalad.storage.model_file import Model, read_model
from metalad.visualization.maps import verdict_overlay
from tests.noise import draw, draw_many, files_in, noise_run


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Spare these tiny tensors the waiting for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return read_model(run)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def judge_of(model: Model, batch_size: int = 4) -> Judge:
    return Judge(model.detector, "calibrated", model.threshold(), batch_size)


# What is found


def test_scores_are_the_detectors_and_come_in_order(run: Path, model: Model, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 11)
    results = list(predict(run, [folder], tmp_path / "out", batch_size=4))
    assert [result.path.name for result in results] == [f"{index:03}.png" for index in range(11)]
    images = load_images([Sample(result.path, False, "good", None) for result in results], (32, 32))
    with torch.inference_mode():
        expected = model.detector(to_batch(images.pixels)).score.numpy()
    np.testing.assert_allclose(np.array([result.score for result in results], float), expected, rtol=1e-5)
    assert {result.threshold for result in results} == {model.threshold()}
    verdicts = [result.abnormal for result in results]
    assert verdicts == [score > model.threshold() for score in expected]
    assert set(verdicts) == {False, True}  # else the comparison above compares nothing


def test_scoring_and_false_alarms_choose_score_and_threshold(run: Path, model: Model, tmp_path: Path) -> None:
    image = draw(tmp_path / "x.png")

    def judged(scoring: Scoring | None, false_alarms: float | None) -> PredictedImage:
        (result,) = predict(run, [image], tmp_path / "out", scoring=scoring, false_alarms=false_alarms)
        return result

    own, rare, raw = judged(None, None), judged(None, 0.001), judged("raw", None)
    assert own == judged("calibrated", model.header.false_alarms)
    assert (rare.score, raw.threshold) == (own.score, model.threshold(scoring="raw"))
    assert rare.threshold > own.threshold
    assert raw.score != own.score


def test_a_result_does_not_depend_on_batch_mates(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 6)
    together = list(predict(run, [folder], tmp_path / "together", batch_size=4))
    for result in together:
        (alone,) = predict(run, [result.path], tmp_path / "alone", batch_size=4)
        assert alone.score == result.score
        assert alone.map is not None
        assert result.map is not None
        assert alone.map.read_bytes() == result.map.read_bytes()


def test_real_images_of_another_size_than_the_models(run: Path, tmp_path: Path) -> None:
    paths = sorted((DATA / "test" / "anomaly").glob("*.jpg"))[:2]
    for result in predict(run, paths, tmp_path):
        assert result.map is not None
        assert result.overlay is not None
        size = image_size(result.path)
        assert pixels_of(result.map).dtype == np.uint16
        assert pixels_of(result.map).shape == size
        assert pixels_of(result.overlay).shape == (*size, 3)
        assert result.overlay.suffix == ".jpg"


# What the files hold


def test_a_map_file_is_the_map_in_16384ths_of_the_threshold(run: Path, model: Model, tmp_path: Path) -> None:
    image = draw(tmp_path / "x.png", seed=1, size=(32, 32))
    (result,) = predict(run, [image], tmp_path / "out", batch_size=1)  # another size has other last bits
    with torch.inference_mode():
        anomaly_map = model.detector(to_batch(read_image(image)[None])).anomaly_map[0].numpy()
    assert result.map is not None
    written = pixels_of(result.map).astype(float) / 16384 * result.threshold
    assert np.abs(written - anomaly_map).max() <= 0.51 / 16384 * result.threshold
    assert written.max() > 0.5 * result.threshold


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20))
def test_steps_keep_the_order_and_pin_the_threshold(values: list[float]) -> None:
    relative = np.array([[0.0, 1.0, 4.0, *sorted(values)]], np.float32)
    steps = to_steps(relative)[0]
    assert steps[:3].tolist() == [0, 16384, 65535]
    assert (np.diff(steps[3:].astype(int)) >= 0).all()


@pytest.mark.parametrize("peak", [0.1, 0.9, 30.0])
def test_an_overlay_drawn_in_bands_is_the_overlay(peak: float) -> None:
    generator = np.random.default_rng(1)
    image = generator.integers(0, 256, (200, 90, 3), np.uint8)
    small = generator.random((8, 8), np.float32)
    relative = resize_map(small / small.max() * np.float32(peak), (200, 90))
    drawn = draw_overlay(image, relative)
    np.testing.assert_array_equal(drawn, verdict_overlay(image, relative, 1.0))
    assert (drawn != image).any() == (peak > 0.125)


def test_a_large_image_is_decoded_again_for_the_same_overlay(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = draw(tmp_path / "x.png")
    (held,) = predict(run, [image], tmp_path / "held")
    monkeypatch.setattr(module, "KEPT_PIXELS", 10)
    (again,) = predict(run, [image], tmp_path / "again")
    assert held.overlay is not None
    assert again.overlay is not None
    assert held.overlay.read_bytes() == again.overlay.read_bytes()


@pytest.mark.parametrize(("threshold", "step"), [(1e-60, 65535), (1e300, 0)])
def test_extreme_thresholds_clip(model: Model, tmp_path: Path, threshold: float, step: int) -> None:
    image = draw(tmp_path / "x.png")
    writer = Writer(tmp_path / "out", threshold)
    (result,) = predict_sources(judge_of(model), [Source(image, "x")], writer)
    assert result.map is not None
    assert set(pixels_of(result.map).flat) == {step}


def test_an_image_wider_than_any_jpeg_gets_a_png(run: Path, tmp_path: Path) -> None:
    image = draw(tmp_path / "x.png", size=(8, 66_000))
    (result,) = predict(run, [image], tmp_path / "out", maps=False)
    assert result.overlay == tmp_path / "out" / "overlays" / "x.png"
    assert pixels_of(result.overlay).shape == (8, 66_000, 3)


@pytest.mark.parametrize(("maps", "overlays"), [(True, False), (False, True), (False, False)])
def test_only_what_is_wanted_is_written(run: Path, tmp_path: Path, maps: bool, overlays: bool) -> None:
    image = draw(tmp_path / "x.png")
    (result,) = predict(run, [image], tmp_path / "out", maps=maps, overlays=overlays)
    assert (result.map is not None, result.overlay is not None) == (maps, overlays)
    expected = {"predictions.jsonl": True, "maps/x.png": maps, "overlays/x.jpg": overlays}
    assert files_in(tmp_path / "out") == {name for name, wanted in expected.items() if wanted}


def test_predictions_are_recorded_as_they_are_told(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 3)
    (folder / "001.png").write_text("no image")
    results = list(predict(run, [folder], tmp_path / "out"))
    lines = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [result.to_json() for result in results]
    assert list(results[0].to_json()) == ["path", "score", "threshold", "abnormal", "map", "overlay"]
    assert list(results[1].to_json()) == ["path", "error"]


# Names


def test_outputs_mirror_the_folder_and_never_collide(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("x.png", "x.bmp", "X.JPG", "x-2.png", "a/x.png", "a/b/x.png", "b/x.png"):
        draw(folder / name, seed=len(name))
    results = list(predict(run, [folder], tmp_path / "out"))
    maps = [result.map.relative_to(tmp_path / "out" / "maps").as_posix() for result in results if result.map]
    assert len({name.casefold() for name in maps}) == len(results) == 7
    assert {"a/x.png", "a/b/x.png", "b/x.png"} <= set(maps)
    assert len([name for name in files_in(tmp_path / "out") if name.startswith("overlays/")]) == 7


def test_several_paths_are_named_below_what_they_share(tmp_path: Path) -> None:
    one, two = draw(tmp_path / "one" / "x.png"), draw(tmp_path / "two" / "deep" / "x.png")
    out = tmp_path / "out"

    def names(*paths: Path) -> list[str]:
        return [source.name for source in find_sources(paths, out)]

    assert names(one.parent, two.parent.parent) == ["one/x", "two/deep/x"]
    assert names(one, two) == ["one/x", "two/deep/x"]
    assert names(one) == ["x"]
    assert names(two.parent.parent) == ["deep/x"]
    assert names(one, one) == ["x", "x-2"]
    assert names(one.parent / ".." / "two" / "deep" / "x.png", one) == ["two/deep/x", "one/x"]


@given(st.lists(st.sampled_from(["a", "A", "a-2", "a-3", "b", "a.c"]), max_size=12))
def test_names_are_unique_whatever_the_images_are_called(stems: list[str]) -> None:
    paths = [Path("/in") / f"{stem}.{index}.png".replace(f".{index}.", ".") for index, stem in enumerate(stems)]
    names = [source.name for source in sources._named(iter(paths), Path("/in"))]
    assert len({name.casefold() for name in names}) == len(paths)


def test_results_inside_the_folder_are_not_judged_again(run: Path, tmp_path: Path) -> None:
    draw_many(tmp_path, 3)
    for _ in range(2):
        results = list(predict(run, [tmp_path], tmp_path))
        assert [result.path.name for result in results] == ["000.png", "001.png", "002.png"]
    with pytest.raises(DataError, match="no images in"):
        predict(run, [tmp_path / "maps"], tmp_path)


# What goes wrong


def test_an_unreadable_image_is_named_and_the_others_go_on(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 9)
    for name in ("000.png", "004.png", "008.png"):
        (folder / name).write_text("no image")
    results = list(predict(run, [folder], tmp_path / "out", batch_size=2))
    assert [result.error is not None for result in results] == [index % 4 == 0 for index in range(9)]
    assert results[4].error == "not a PNG, JPEG, BMP, TIFF or WebP image"
    assert (results[4].path.name, results[4].score, results[4].abnormal) == ("004.png", None, None)
    assert len(files_in(tmp_path / "out" / "maps")) == 6


def test_a_folder_of_unreadable_images_only(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    (result,) = predict(run, [tmp_path / "x.png"], tmp_path / "out")
    assert result.error == "the file is empty"


def test_strict_yields_what_comes_before_the_first_unreadable(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 6)
    (folder / "003.png").write_text("no image")
    results = predict(run, [folder], tmp_path / "out", strict=True)
    assert [next(results).path.name for _ in range(3)] == ["000.png", "001.png", "002.png"]
    with pytest.raises(ImageError, match=r"003\.png: not a PNG"):
        next(results)
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_a_large_image_that_vanishes_before_its_overlay(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, read = draw(tmp_path / "x.png"), iter([None])

    def read_once(path: Path) -> UInt8[np.ndarray, "height width 3"]:
        if next(read, image) is None:
            return read_image(path)
        return read_image(tmp_path / "gone.png")

    monkeypatch.setattr(module, "KEPT_PIXELS", 10)
    monkeypatch.setattr(module, "read_image", read_once)
    (result,) = predict(run, [image], tmp_path / "out")
    assert result.error is not None
    assert "no such file" in result.error


def test_mistakes_are_told_at_the_call(run: Path, tmp_path: Path) -> None:
    image = draw(tmp_path / "x.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty; looked for files named \.bmp"):
        predict(run, [tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(DataError, match=r"cannot reach .*gone: No such file"):
        predict(run, [image, tmp_path / "gone"], tmp_path / "out")
    with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1"):
        predict(run, [image], tmp_path / "out", batch_size=0)
    with pytest.raises(ConfigError, match="false_alarms is 2"):
        predict(run, [image], tmp_path / "out", false_alarms=2.0)
    with pytest.raises(ModelFileError):
        predict(tmp_path, [image], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_told_before_any_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = draw(tmp_path / "x.png")
    monkeypatch.setattr(module, "read_image", lambda _: pytest.fail("an image was read"))
    with pytest.raises(RunError, match="cannot write"):
        next(predict(run, [image], image))


def test_a_failing_write_ends_it(run: Path, tmp_path: Path) -> None:
    image = draw(tmp_path / "x.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "maps").touch()
    with pytest.raises(RunError, match="a file exists where a folder is needed"):
        list(predict(run, [image], tmp_path / "out"))


# Stopping


def no_threads() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("predict")]


def test_closing_leaves_whole_files_and_no_threads(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 40)
    threads = torch.get_num_threads()
    results = predict(run, [folder], tmp_path / "out", batch_size=2)
    next(results)
    results.close()
    assert no_threads()
    assert torch.get_num_threads() == threads
    written = files_in(tmp_path / "out")
    assert "predictions.jsonl" not in written
    assert not [name for name in written if name.endswith(".tmp")]
    assert 0 < len(written) < 40
    for name in written:
        pixels_of(tmp_path / "out" / name)


def test_ctrl_c_in_the_model_stops_everything(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = iter(range(2))

    def judge(detector: Detector, *arguments: Any) -> Any:
        if next(batches, None) is None:
            raise KeyboardInterrupt
        return original(detector, *arguments)

    original: Callable[..., Any] = Metal.judge
    monkeypatch.setattr(Metal, "judge", judge)
    folder = draw_many(tmp_path / "in", 30)
    with pytest.raises(KeyboardInterrupt):
        list(predict(run, [folder], tmp_path / "out", batch_size=2))
    assert no_threads()
    assert not [name for name in files_in(tmp_path / "out") if name.endswith((".tmp", ".jsonl"))]


# Memory


@pytest.mark.parametrize("count", [20, 60])
def test_images_in_memory_are_bounded_by_the_batch_not_by_their_number(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    batch_size, alive, most, read = 3, 0, 0, 0
    lock = threading.Lock()
    image = draw(tmp_path / "x.png")

    def forget() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def counting(path: Path) -> UInt8[np.ndarray, "height width 3"]:
        nonlocal alive, most, read
        pixels = read_image(path)
        weakref.finalize(pixels, forget)
        with lock:
            alive, read = alive + 1, read + 1
            most = max(most, alive)
        return pixels

    monkeypatch.setattr(module, "read_image", counting)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    sources = (Source(image, f"{index}") for index in range(count))
    writer = Writer(tmp_path / "out", model.threshold(), maps=False)
    for index, _ in enumerate(predict_sources(judge_of(model, batch_size), sources, writer)):
        assert read <= index + 5 * batch_size
    assert read == count
    assert batch_size < most <= 5 * batch_size
    gc.collect()
    assert alive == 0


def test_sources_are_taken_as_they_are_needed(model: Model, tmp_path: Path) -> None:
    image, taken = draw(tmp_path / "x.png"), 0

    def endless() -> Iterator[Source]:
        nonlocal taken
        while True:
            taken += 1
            yield Source(image, f"{taken}")

    results = predict_sources(judge_of(model, 3), endless(), Writer(tmp_path / "out", 1.0))
    for _ in range(5):
        next(results)
    results.close()
    assert taken <= 5 + 8 * (3 + 8)
