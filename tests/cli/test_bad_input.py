"""User errors on the command line: one line with what is wrong, where, and how to fix it; exit code 2."""

import errno
import os
import pickle
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from metalad.cli.main import main
from metalad.inference.model import FORMAT
from metalad.pipelines.train import train
from tests.tiny import TINY, TINY_SETTINGS, tiny_category

Run = Callable[..., str]


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_category(tmp_path_factory.mktemp("data") / "cookie")


@pytest.fixture(scope="module")
def trained(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(category, out, method=TINY, epochs=1)
    return out


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must fail with code 2 and one line on stderr, and return that line."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        lines = [line for line in error.splitlines() if line.startswith("metalad: error: ")]
        assert len(lines) == 1, error
        return lines[0]

    return run


def _train(data: Path, out: Path, *more: str) -> tuple[object, ...]:
    settings = [part for setting in TINY_SETTINGS for part in ("--set", setting)]
    return "train", data, "--out", out, "--method", "metal", *settings, "--epochs", "1", "--quiet", *more


@pytest.mark.parametrize(
    ("name", "parts"),
    [("missing", ["missing", "no such"]), ("file", ["file"]), ("empty", ["empty", "no images"])],
)
def test_a_data_folder_that_is_missing_a_file_or_empty(
    tmp_path: Path, refused: Run, name: str, parts: list[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    line = refused(*_train(tmp_path / name, tmp_path / "run"))
    assert str(tmp_path / name) in line
    assert any(part in line for part in parts), line
    assert not (tmp_path / "run").exists()


def test_a_category_without_good_images(tmp_path: Path, refused: Run) -> None:
    data = tiny_category(tmp_path / "data")
    shutil.rmtree(data / "train/good")
    (data / "train/good").mkdir()
    assert "good" in refused(*_train(data, tmp_path / "run"))


def test_a_single_good_image_is_too_few(tmp_path: Path, refused: Run) -> None:
    data = tiny_category(tmp_path / "data", train=1)
    assert "at least 2" in refused(*_train(data, tmp_path / "run"))


def _text(path: Path) -> None:
    path.write_text("not an image")


def _truncated(path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    image.save(path.with_suffix(".jpg"))
    path.write_bytes(path.with_suffix(".jpg").read_bytes()[:500])
    path.with_suffix(".jpg").unlink()


def _one_pixel(path: Path) -> None:
    Image.new("RGB", (1, 1)).save(path, "PNG")


def _bomb(path: Path) -> None:
    row = zlib.compress(bytes(1 + 30_000 // 8) * 30_000, 9)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b""))


BAD_IMAGES = {
    "text": (_text, "not a PNG, JPEG"),
    "truncated": (_truncated, "damaged or truncated"),
    "pixel": (_one_pixel, "1 × 1"),
    "bomb": (_bomb, "decompression bomb"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_an_error_only_with_strict(
    kind: str, tmp_path: Path, refused: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, part = BAD_IMAGES[kind]
    data = tiny_category(tmp_path / "data")
    bad = data / "train/good/bad.png"
    damage(bad)
    line = refused(*_train(data, tmp_path / "strict", "--strict"))
    assert str(bad) in line
    assert part in line
    assert not (tmp_path / "strict/model.safetensors").exists()
    assert main([str(argument) for argument in _train(data, tmp_path / "run")]) == 0
    capsys.readouterr()
    assert f"skipped {bad}" in (tmp_path / "run/train.log").read_text()


def test_a_mask_of_another_size(tmp_path: Path, trained: Path, refused: Run) -> None:
    data = tiny_category(tmp_path / "data")
    mask = sorted((data / "ground_truth/anomaly").iterdir())[0]
    Image.new("L", (10, 20)).save(mask)
    line = refused("evaluate", trained, data, "--quiet")
    assert str(mask) in line
    assert "20" in line
    assert "341" in line


def test_an_image_without_its_mask_is_excluded_from_pixel_metrics(tmp_path: Path, trained: Path) -> None:
    data = tiny_category(tmp_path / "data")
    sorted((data / "ground_truth/anomaly").iterdir())[0].unlink()
    assert main(["evaluate", str(trained), str(data), "--quiet", "--out", str(tmp_path / "report")]) == 0
    assert "1 anomalous images have no ground-truth mask" in (tmp_path / "report/report.html").read_text()


def test_no_test_images(tmp_path: Path, trained: Path, refused: Run) -> None:
    data = tiny_category(tmp_path / "data")
    shutil.rmtree(data / "test")
    assert "no test images" in refused("evaluate", trained, data, "--quiet")


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _altered(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))


def _newer(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    metadata["metalad"] = metadata["metalad"].replace(f'"format": {FORMAT}', '"format": 99')
    save_file(tensors, file, metadata)


def _pickled(file: Path) -> None:
    file.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def _saved_by_torch(file: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, file)


BAD_MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (_cut, "damaged"),
    "altered": (_altered, "altered"),
    "newer": (_newer, "newer metalad"),
    "pickle": (_pickled, "pickle"),
    "zip": (_saved_by_torch, "pickle"),
    "missing": (Path.unlink, "no model.safetensors"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_an_unusable_model_file(kind: str, tmp_path: Path, trained: Path, category: Path, refused: Run) -> None:
    damage, part = BAD_MODELS[kind]
    run = shutil.copytree(trained, tmp_path / "run")
    damage(run / "model.safetensors")
    line = refused("evaluate", run, category, "--quiet")
    assert str(run) in line
    assert part in line
    assert not (run / "evaluation").exists()


def test_a_run_folder_in_use(trained: Path, category: Path, refused: Run) -> None:
    assert "--resume" in refused(*_train(category, trained))


def test_a_run_resumed_with_another_seed(tmp_path: Path, trained: Path, category: Path, refused: Run) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "model.safetensors").unlink()
    line = refused(*_train(category, run, "--resume", "--seed", "5"))
    assert "seed" in line
    assert "another folder" in line


@pytest.mark.parametrize(
    ("error", "part"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "permission")]
)
def test_an_unwritable_run_folder(
    error: int, part: str, tmp_path: Path, category: Path, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, who may write everywhere; the error of the operating system is simulated.
    def fail(self: Path, _: bytes) -> int:
        raise OSError(error, os.strerror(error), str(self))

    monkeypatch.setattr(Path, "write_bytes", fail)
    line = refused(*_train(category, tmp_path / "run"))
    assert part in line
    assert str(tmp_path / "run") in line
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_run_interrupted_by_ctrl_c_can_be_resumed(
    tmp_path: Path, category: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = [str(argument) for argument in _train(category, tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr("metalad.training.loop.Descent.step", interrupt)
        assert main(arguments) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "run/model.safetensors").exists()
    assert main([*arguments, "--resume"]) == 0
    assert (tmp_path / "run/model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--method", "metal", "--set", "depth=two"], "a whole number"),
        (["--set", "colour=red"], "no setting 'colour'"),
        (["--method", "metal", "--set", "patch_size=7"], "does not divide"),
        (["--method", "magic"], "there are: metal"),
        (["--false-alarms", "2"], "false_alarms is 2.0; it is a probability between 0 and 1"),
        (["--false-alarms", "101%"], "false_alarms is 1.01; it is a probability between 0 and 1"),
        (
            ["--protocol", "paper", "--set", "guide=imag"],
            "guide='imag': did you mean image? It can be image, none",
        ),
        (["--method", "piade", "--backbone", "lite2"], "It can be lite0, lite1, resnet18, wide_resnet50_2"),
        (["--epochs", "0"], "at least 1"),
        (["--device", "cuda:77"], "cuda:77"),
    ],
)
def test_invalid_settings(arguments: list[str], part: str, tmp_path: Path, category: Path, refused: Run) -> None:
    assert part in refused("train", category, "--out", tmp_path / "run", "--quiet", *arguments)
    assert not (tmp_path / "run").exists()
