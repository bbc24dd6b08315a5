"""Fitting on images in memory: the model of `train` on a folder of the same images, and no files."""

import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metalad
from metalad.data.images import find_images, read_image
from metalad.detectors.base import DetectorConfig
from metalad.methods.metal_features import MetalFeaturesConfig
from metalad.methods.padim import PadimConfig
from metalad.methods.variation_model import VariationModel, VariationModelConfig
from metalad.pipelines.fit import _validation_mask, fit
from metalad.pipelines.model import Model
from metalad.pipelines.train import train
from metalad.runtime.errors import ConfigError, DataError, ImageError
from metalad.training.loop import TrainingStep
from tests.cookies import cookies, put_cookies
from tests.tiny import TINY

METHODS: dict[str, DetectorConfig] = {
    "metal_features": MetalFeaturesConfig(image_size=(48, 64), smoothing_sigma=2.0, codebook_size=64, context_steps=20),
    "metal": TINY,
    "padim": PadimConfig(image_size=(48, 64), smoothing_sigma=2.0, channels=16, grid="s8"),
    "variation_model": VariationModelConfig(image_size=(48, 64)),
}
FAST: dict[str, Any] = {"method": TINY, "epochs": 2, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_cookies(tmp_path_factory.mktemp("data") / "cookie", 12)


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Model:
    return fit(find_images(folder), **FAST)


def same(model: Model, other: Model) -> None:
    """Check that two models have the same tensors, thresholds and scores, to the last bit."""
    tensors, others = model.stored.detector.state_dict(), other.stored.detector.state_dict()
    assert list(tensors) == list(others)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    assert model.header.thresholds == other.header.thresholds
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    result, expected = model.predict(image), other.predict(image)
    assert result.score == expected.score
    np.testing.assert_array_equal(result.anomaly_map, expected.anomaly_map)


# The model of `train`


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_fit_gives_the_model_of_train_on_a_folder_of_the_images(
    folder: Path, tmp_path: Path, method: str, seed: int
) -> None:
    """Both hold out the same images where the images are in the order of `find_images`, and no two are equal."""
    options: dict[str, Any] = {"method": METHODS[method], "seed": seed, "device": "cpu", "precision": "fp32"}
    if method == "metal":
        options["epochs"] = 2
    model, trained = fit(find_images(folder), **options), train(folder, tmp_path / "run", **options)
    same(model, trained)
    for name in ("method", "config", "calibration", "seed", "protocol", "training", "images", "versions"):
        assert getattr(model.header, name) == getattr(trained.header, name), name
    assert (model.header.category, trained.header.category) == ("images", "cookie")
    assert (model.path, trained.path) == (None, tmp_path / "run" / "model.safetensors")


def test_every_representation_of_the_images_gives_the_same_model(folder: Path, fitted: Model) -> None:
    paths = find_images(folder)
    pixels = [read_image(path) for path in paths]
    tensors = [torch.from_numpy(np.moveaxis(image, -1, 0).copy()) for image in pixels]
    for images in (
        [str(path) for path in paths],
        pixels,
        list(np.stack(pixels)),
        [image / 255 for image in pixels],
        list(torch.stack(tensors)),
        [tensor.float() / 255 for tensor in tensors],
        [Image.fromarray(image) for image in pixels],
        (read_image(path) for path in paths),
        [*paths[:4], *pixels[4:8], *tensors[8:]],
    ):
        model = fit(images, **FAST)
        same(model, fitted)
        assert model.header.training_hash == fitted.header.training_hash


def test_images_may_differ_in_size() -> None:
    images = [image[: 32 - number, : 20 + number] for number, image in enumerate(cookies(6))]
    model = fit(images, **FAST)
    assert model.images == 5
    assert model.predict(images[0]).anomaly_map.shape == (32, 20)


def test_a_tenth_of_the_images_is_held_out_and_equal_images_are_on_one_side() -> None:
    for count, held_out in ((3, 1), (4, 1), (14, 1), (16, 2), (31, 3)):
        assert _validation_mask([str(number) for number in range(count)], 0).sum() == held_out
    hashes = [str(number % 10) for number in range(20)]
    for seed in range(5):
        mask = _validation_mask(hashes, seed)
        assert mask.sum() == 2
        assert np.array_equal(mask[:10], mask[10:])
    assert _validation_mask(["0"] * 4, 0).tolist().count(True) == 1


def test_a_method_with_a_closed_form_is_fitted_on_all_images_and_scores_all_out_of_fold() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    model = fit(list(images), method="variation_model", image_size=32)
    assert model.header.images == {"training": 12, "validation": 0, "skipped": 0}
    detector = model.stored.detector
    assert isinstance(detector, VariationModel)
    assert len(detector.get_buffer("normal_scores_raw")) == 12
    np.testing.assert_allclose(detector.normal.numpy(), images.mean(0).transpose(2, 0, 1) / 255, rtol=1e-5)


def test_the_seed_changes_the_model_and_the_hash_depends_on_the_images_alone(folder: Path, fitted: Model) -> None:
    paths = find_images(folder)
    other = fit(paths, seed=1, **FAST)
    assert other.header.training_hash == fitted.header.training_hash
    assert other.header.thresholds != fitted.header.thresholds
    assert fit(paths[::-1], **FAST).header.training_hash == fitted.header.training_hash
    assert fit(paths[:-1], **FAST).header.training_hash != fitted.header.training_hash
    assert len(fitted.header.training_hash) == 64


def test_settings_may_be_given_as_keywords(folder: Path) -> None:
    model = fit(find_images(folder)[:4], method="variation_model", image_size=(40, 48), smoothing_sigma=1.0)
    assert (model.method, model.image_size, model.settings["smoothing_sigma"]) == ("variation_model", (40, 48), 1.0)
    assert fit(find_images(folder)[:4], method="variation_model", image_size=32).image_size == (32, 32)


def test_false_alarms_set_the_threshold(folder: Path) -> None:
    bold, careful = (fit(find_images(folder), **FAST, false_alarms=rate) for rate in (0.5, 0.01))
    assert bold.threshold < careful.threshold
    assert bold.threshold_for(0.01) == careful.threshold


# The callback


def test_the_callback_gets_every_step_of_gradient_descent(folder: Path, tmp_path: Path) -> None:
    for number in range(2):
        steps: list[TrainingStep] = []
        if number:
            fit(find_images(folder), **{**FAST, "epochs": 3}, callback=steps.append)
        else:
            train(folder, tmp_path / "run", **{**FAST, "epochs": 3}, callback=steps.append)
        assert [step.step for step in steps] == list(range(1, len(steps) + 1))
        assert {(step.stage, step.steps, step.epochs) for step in steps} == {("train", len(steps), 3)}
        assert [step.epoch for step in steps] == sorted(step.epoch for step in steps)
        assert {step.epoch for step in steps} == {1, 2, 3}
        assert all(isinstance(step.loss, float) and math.isfinite(step.loss) for step in steps)
        for step in steps:
            assert (step.validation_loss is None) == (step.epoch == 1)
        losses = [
            {step.validation_loss for step in group} for _, group in itertools.groupby(steps, lambda step: step.epoch)
        ]
        assert all(len(values) == 1 for values in losses)
        assert len(set.union(*losses)) == 3


def test_a_closed_form_method_does_not_call_the_callback(folder: Path, tmp_path: Path) -> None:
    def called(step: TrainingStep) -> None:
        pytest.fail(f"called with {step}")

    fit(find_images(folder), method=METHODS["variation_model"], callback=called)
    train(folder, tmp_path / "run", method=METHODS["variation_model"], callback=called)


def test_an_error_of_the_callback_stops_training(folder: Path) -> None:
    calls = 0

    def stop(_: TrainingStep) -> None:
        nonlocal calls
        calls += 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(find_images(folder), **FAST, callback=stop)
    assert calls == 1


# No files

SCRIPT = """
import os, sys
from pathlib import Path
import metalad
from metalad.data.images import find_images

data, configuration = Path(sys.argv[1]), sys.argv[2]
images = find_images(data / "train")
metal = dict(patch_size=8, width=16, hidden_width=32, smoothing_sigma=1.0, epochs=1)
shown = []
for method, settings in (("metal", metal), ("variation_model", {})):
    model = metalad.fit(images, method=method, image_size=32, device="cpu", **settings)
    results = model.predict(data / "test")
    list(model.predict(images, stream=True))
    report = metalad.evaluate(model, data, corruptions=True, maps=True)
    print(method, len(results), len(report.images))
    shown += [model, report, *results]
assert "matplotlib" not in sys.modules
os.environ["MPLCONFIGDIR"] = configuration  # matplotlib stores a list of fonts when it is imported
for value in shown:
    value._repr_html_()
"""


def test_nothing_is_written_without_a_folder_to_write_to(tmp_path: Path) -> None:
    """Neither the working directory, nor the home, nor the folder for temporary files gets a file."""
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    data = tmp_path / "data"
    for number, part in enumerate(["train/good"] * 6 + ["test/good"] * 2 + ["test/bad"] * 2):
        (data / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number]).save(data / part / f"{number}.png")
    (data / "ground_truth" / "bad").mkdir(parents=True)
    for number in (8, 9):
        Image.fromarray(np.eye(32) > 0).save(data / "ground_truth" / "bad" / f"{number}_mask.png")
    before = sorted(data.rglob("*"))
    watched = [tmp_path / name for name in ("cwd", "home", "tmp")]
    for place in watched:
        place.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("XDG_")},
        "HOME": str(watched[1]),
        "TMPDIR": str(watched[2]),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch"),  # torch makes this folder, and leaves it empty
        "PYTHONPATH": str(Path(metalad.__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", SCRIPT, str(data), str(tmp_path / "matplotlib")]
    done = subprocess.run(command, cwd=watched[0], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "metal 4 4\nvariation_model 4 4\n"
    assert [list(place.rglob("*")) for place in watched] == [[], [], []]
    assert sorted(data.rglob("*")) == before


# Errors


def test_impossible_images_are_errors(folder: Path, tmp_path: Path) -> None:
    paths = find_images(folder)
    wrong: list[tuple[Any, str]] = [
        ([], "found 0 good images, but metal needs at least 2"),
        (paths[:1], "found 1 good images, but metal needs at least 2;"),
        (iter(()), "found 0 good images"),
        (str(folder), r"fit takes a list or an iterable of images; use metalad\.train for a folder"),
        ([paths[0], 3], r"images\[1\] is a int; give a path, a NumPy array, a Pillow image or a torch tensor"),
        ([paths[0], np.full((9, 9), 9.0)], r"images\[1\] is of float64 with values from 9 to 9; floats must be in"),
        ([np.zeros((3, 9, 9), np.uint8)] * 2, r"images\[0\] is an array \[3, 9, 9\], channels first"),
        (np.zeros((4, 9, 9, 3), np.uint8), r"got a batch, \(4, 9, 9, 3\); give its images one by one, as list\(x\)"),
        (np.zeros((9, 9, 3), np.uint8), "fit takes a list or an iterable of images, got one image"),
    ]
    for images, message in wrong:
        with pytest.raises(DataError, match=message):
            fit(images, **FAST)
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(ImageError, match=r"broken\.png: not a PNG"):
        fit([*paths, tmp_path / "broken.png"], **FAST)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"minutes": 0.0}, "minutes is 0"),
        ({"false_alarms": 1.0}, "false_alarms is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"method": "alchemy"}, "no method 'alchemy'"),
        ({"method": "metal", "codebook_size": 3}, "codebook_size"),
        ({"device": "abacus"}, "no device 'abacus'"),
    ],
)
def test_an_impossible_setting_is_an_error_before_any_image_is_taken(changes: dict[str, Any], message: str) -> None:
    def images() -> Iterator[np.ndarray]:
        pytest.fail("an image was taken")
        yield np.zeros((9, 9), np.uint8)

    with pytest.raises(ConfigError, match=message):
        fit(images(), **{**FAST, **changes})


def test_a_saved_model_is_the_fitted_one(fitted: Model, tmp_path: Path) -> None:
    saved = metalad.load(fitted.save(tmp_path / "deep" / "model.safetensors"), device="cpu")
    same(saved, fitted)
    shutil.rmtree(tmp_path / "deep")
    fitted.save(tmp_path / "again" / "model.safetensors")
    assert metalad.load(tmp_path / "again", device="cpu").header == fitted.header


def test_with_one_scale_maps_are_of_the_image_and_equal_in_an_exported_file(tmp_path: Path) -> None:
    shapes = [(40, 60), (60, 30), (50, 50), (30, 64), (64, 40), (40, 40)]
    random = np.random.default_rng(0)
    images = [random.integers(90, 110, (*shape, 3), np.uint8) for shape in shapes]
    model = fit(images, method="variation_model", image_size="32,40", image_scale=0.5, smoothing_sigma=1.0)
    tested = images[1].copy()
    tested[44:50, 6:12] = 255
    result = model.predict(tested)
    assert result.anomaly_map.shape == (60, 30)
    row, column = np.unravel_index(result.anomaly_map.argmax(), result.anomaly_map.shape)
    assert 42 <= row < 52
    assert 4 <= column < 14
    metalad.export(model, tmp_path / "model.onnx")
    exported = metalad.load(tmp_path / "model.onnx").predict(tested)
    assert exported.anomaly_map.shape == (60, 30)
    assert np.allclose(exported.anomaly_map, result.anomaly_map, rtol=1e-4, atol=1e-4 * result.score)
    assert exported.score == pytest.approx(result.score, rel=1e-4)
