"""Exported files: the same results as the trained model, and nothing is written where they would differ."""

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import metalad
from metalad.cli.main import main
from metalad.exporting.graph import onnx_graph
from metalad.pipelines import export as export_module
from metalad.runtime.errors import ConfigError, ModelFileError, RunError
from metalad.storage.exported import read_exported
from tests.cookies import cookies
from tests.tiny import tiny_category

SIZE = (32, 48)


@pytest.fixture(scope="module")
def model() -> metalad.Model:
    return metalad.fit(list(cookies(8, SIZE)), method="variation_model", image_size=SIZE, false_alarms=0.2)


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """Trace the model once for all tests, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "onnx_graph", cache(onnx_graph))
        yield


@pytest.fixture(scope="module")
def onnx_file(model: metalad.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return metalad.export(model, tmp_path_factory.mktemp("exported") / "model.onnx").path


def test_an_onnx_file_predicts_as_the_trained_model_does(model: metalad.Model, onnx_file: Path) -> None:
    exported = metalad.load(onnx_file)
    assert exported.threshold == model.threshold
    assert exported.threshold_for(0.05) == model.threshold_for(0.05)
    for image in cookies(12, (60, 80))[8:]:
        expected, found = model.predict(image), exported.predict(image)
        assert found.score == pytest.approx(expected.score, rel=1e-4)
        assert found.is_anomalous == expected.is_anomalous
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-4 * expected.score)


def test_an_openvino_file_predicts_as_the_trained_model_does(model: metalad.Model, tmp_path: Path) -> None:
    report = metalad.export(model, tmp_path / "model.xml")
    assert report.format == "openvino"
    assert report.size == sum((tmp_path / name).stat().st_size for name in ("model.xml", "model.bin"))
    exported = metalad.load(tmp_path / "model.xml")
    image = cookies(9, (60, 80))[8]
    assert exported.predict(image).score == pytest.approx(model.predict(image).score, rel=1e-4)


def test_the_metadata_states_the_model_and_the_measured_difference(model: metalad.Model, onnx_file: Path) -> None:
    metadata = read_exported(onnx_file).metadata
    assert metadata.header.training_hash == model.header.training_hash
    assert metadata.precision == "fp32"
    assert metadata.opset == 18
    assert metadata.images == export_module.CHECKED_IMAGES
    assert 0 <= metadata.difference <= metadata.tolerance == 1e-4
    assert {"metalad", "torch", "onnx", "onnxruntime"} <= set(metadata.versions)


def test_nothing_is_written_if_scores_differ_more_than_the_tolerance(
    model: metalad.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export_module.TOLERANCES, "fp32", -1.0)
    with pytest.raises(RunError, match=r"nothing was written: in fp32, the score of .* differs"):
        metalad.export(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_labelled_images_give_the_auroc(model: metalad.Model, tmp_path: Path) -> None:
    category = tiny_category(tmp_path / "category", train=2, good=2, defective=2)
    report = metalad.export(model, tmp_path / "model.onnx", precision="fp16", data=category)
    assert report.images == 4
    assert report.auroc == report.trained_auroc
    assert "image AUROC" in report.text()


def test_an_existing_file_is_replaced_only_with_overwrite(model: metalad.Model, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(RunError, match="--overwrite"):
        metalad.export(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "mine"


def test_a_file_that_cannot_be_written_is_refused_before_the_graph_is_made(
    model: metalad.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("metalad.pipelines.export.onnx_graph", None)
    with pytest.raises(RunError, match=r"cannot write .*: a file exists where a folder is needed"):
        metalad.export(model, tmp_path / "file" / "model.onnx")


def test_a_missing_openvino_is_reported_before_the_graph_is_made(
    model: metalad.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(export_module, "onnx_graph", lambda *_: pytest.fail("the graph was made before the check"))
    with pytest.raises(ConfigError, match=r"needs openvino, which is not installed; install metalad\[openvino\]"):
        metalad.export(model, tmp_path / "model.xml")


def test_impossible_options_are_refused(model: metalad.Model, onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.onnx, but files of format openvino end with \.xml; change one"):
        metalad.export(model, tmp_path / "model.onnx", format="openvino")
    with pytest.raises(ConfigError, match=r"model\.xml, but files of format onnx end with \.onnx"):
        metalad.export(model, tmp_path / "model.xml", format="onnx")
    with pytest.raises(ConfigError, match=r"ends with \.onnx, or with \.xml for OpenVINO"):
        metalad.export(model, tmp_path / "model")
    with pytest.raises(ConfigError, match="calibration-data"):
        metalad.export(model, tmp_path / "model.onnx", precision="int8")
    with pytest.raises(ModelFileError, match="exported model"):
        metalad.export(onnx_file, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_command_lists_which_methods_can_be_exported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["metal_features"] == "yes"
    assert lines["anogan"].startswith("no: ")


def test_the_command_without_a_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run"]) == 2
    assert "metalad export RUN --out FILE" in capsys.readouterr().err
