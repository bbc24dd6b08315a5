"""Names of served models, and loading a file again when it changes."""

import logging
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import metalad
from metalad.inference.engine import Inference
from metalad.inference.onnx_engine import OnnxEngine
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import ConfigError, ModelFileError
from metalad.service.models import Registry, named_paths
from metalad.service.problems import Problem
from metalad.service.warming import ROUNDS
from metalad.storage.exported_metadata import with_metadata
from tests.exported import exported_bytes, exported_metadata, exported_onnx


def test_names_come_from_folders_or_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs/a=b").mkdir(parents=True)
    for name in ("runs/a=b/model.safetensors", "cap.onnx"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    texts = ("runs/a=b", "x=runs/a=b/model.safetensors", "cap.onnx", "y=cap.onnx")
    assert named_paths(texts) == {
        "a=b": Path("runs/a=b"),
        "x": Path("runs/a=b/model.safetensors"),
        "cap": Path("cap.onnx"),
        "y": Path("cap.onnx"),
    }
    assert list(named_paths(["runs/a=b/model.safetensors"])) == ["a=b"]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (("a=x", "a=y"), "two models are called 'a': x and y"),
        (("=x",), "no usable name"),
        (("a/b=x",), "no usable name"),
    ],
)
def test_names_must_be_usable_and_different(texts: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        named_paths(texts)


def test_requests_find_models_by_their_names_alone(model: metalad.Model) -> None:
    registry = Registry.load([f"a={model.path}", f"b={model.path}"], "cpu")
    assert registry.get("b").name == "b"
    for name in ("", "c", str(model.path), "../a"):
        with pytest.raises(Problem) as error:
            registry.get(name)
        assert error.value.status == 404
    with pytest.raises(Problem, match="several models are served") as error:
        registry.get(None)
    assert error.value.status == 422
    del registry.served["a"]
    assert registry.get(None).name == "b"


def test_a_changed_file_is_loaded_again_and_a_broken_one_is_not(
    model: metalad.Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert model.path is not None
    file = tmp_path / "model.safetensors"
    shutil.copy(model.path, file)
    registry = Registry.load([f"m={tmp_path}"], "cpu")
    first = registry.get("m")

    def checked() -> object:
        registry.check_files()
        return registry.get("m")

    assert checked() is first
    os.utime(file, ns=(1, 1))  # another time, the same content
    checked()
    assert checked().model is first.model  # type: ignore[attr-defined]
    file.write_bytes(b"broken")
    before = registry.get("m")
    assert checked() is before  # it could still be in writing
    with caplog.at_level(logging.WARNING, "metalad"):
        checked()
        checked()
    kept = registry.get("m")
    assert kept.model is first.model
    assert kept.error is not None
    assert "stays in service" in kept.error
    assert [record.getMessage().count(str(file)) for record in caplog.records] == [1]  # once, not at each check
    file.unlink()
    checked()
    checked()
    assert "is missing" in str(registry.get("m").error)
    fitted = metalad.fit([image for image in _noise()], method="variation_model", image_size=(48, 64))
    fitted.save(file)
    checked()
    checked()
    fresh = registry.get("m")
    assert fresh.model is not first.model
    assert fresh.model.threshold() == fitted.threshold != model.threshold
    assert (fresh.error, fresh.hash == first.hash) == (None, False)


def _noise() -> list[object]:
    from tests.service.pictures import picture

    return [picture(seed) for seed in range(100, 112)]


def test_a_model_has_scored_in_all_threads_at_once_before_it_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = 3
    together, calls = threading.Barrier(workers), list[int]()
    infer = OnnxEngine.infer

    def recorded(self: OnnxEngine, pixels: np.ndarray, scorings: Sequence[Scoring]) -> Inference:
        together.wait(60)  # raises if fewer threads come here at once
        calls.append(len(pixels))
        return infer(self, pixels, scorings)

    monkeypatch.setattr(OnnxEngine, "threads", lambda _: workers)
    monkeypatch.setattr(OnnxEngine, "infer", recorded)
    Registry.load([str(exported_onnx(tmp_path / "x.onnx"))], "cpu")
    assert calls == [1] * workers * ROUNDS


@pytest.mark.parametrize("error", [ValueError("no such operator\nmore"), RuntimeError()])
def test_a_model_that_cannot_score_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    file = exported_onnx(tmp_path / "x.onnx")
    registry = Registry.load([str(file)], "cpu")
    good = registry.get("x")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(OnnxEngine, "infer", fail)
    reason = rf"x\.onnx: the model was loaded, but cannot score a picture \({str(error).partition(chr(10))[0]}"
    with pytest.raises(ModelFileError, match=reason):
        Registry.load([str(file)], "cpu")
    file.write_bytes(with_metadata(exported_bytes(), exported_metadata(images=5)))
    with caplog.at_level(logging.WARNING, "metalad"):
        registry.check_files()
        registry.check_files()
    assert "cannot score a picture" in caplog.text
    assert registry.get("x").model is good.model
