"""Exported files: metadata, checksums, and inference without torch."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import metalad
from metalad.data.images import resize_image
from metalad.inference.threshold import threshold
from metalad.runtime.errors import ConfigError, ModelFileError
from metalad.storage.exported_metadata import ExportedMetadata, onnx_metadata, with_metadata
from tests.exported import (
    NORMAL_SCORES,
    SIZE,
    THRESHOLD,
    exported_bytes,
    exported_metadata,
    exported_onnx,
    exported_openvino,
    score_of,
)

Make = Callable[[Path], Path]
FORMATS = pytest.mark.parametrize(
    ("make", "name"), [(exported_onnx, "model.onnx"), (exported_openvino, "model.xml")], ids=["onnx", "openvino"]
)


def image(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200 + 10 * seed, (*size, 3), np.uint8)


def test_metadata_is_read_back_with_the_hash_of_the_bytes_before_it() -> None:
    content, metadata = exported_bytes(), exported_metadata(threshold=0.1 + 0.2, normal_scores=[1 / 3])
    found = onnx_metadata(with_metadata(content, metadata), Path("x.onnx"))
    assert dataclasses.replace(found, sha256="").to_json() == metadata.to_json()
    assert (found.threshold, found.normal_scores) == (0.1 + 0.2, [1 / 3])
    assert len(found.sha256) == 64


@pytest.mark.parametrize("position", [0.01, 0.3, 0.6, 0.95])
def test_any_altered_byte_is_detected(position: float) -> None:
    content = bytearray(with_metadata(exported_bytes(), exported_metadata()))
    content[int(position * len(content))] ^= 1
    with pytest.raises(ModelFileError, match=r"altered|damaged|truncated"):
        onnx_metadata(bytes(content), Path("x.onnx"))


@pytest.mark.parametrize("cut", [1, 100, 1500])
def test_a_truncated_file_is_an_error(cut: int, tmp_path: Path) -> None:
    file = exported_onnx(tmp_path / "x.onnx")
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(ModelFileError, match=r"x\.onnx: (altered|truncated|its metadata is damaged)"):
        metalad.load(file)


def test_an_onnx_file_of_another_origin_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    file.write_bytes(exported_bytes())
    with pytest.raises(ModelFileError, match="not an ONNX file that `metalad export` wrote"):
        metalad.load(file)


def test_a_newer_format_is_an_error() -> None:
    values = json.loads(exported_metadata().to_json()) | {"format": 99}
    with pytest.raises(ModelFileError, match="newer metalad"):
        ExportedMetadata.from_json(json.dumps(values), Path("x.onnx"))


@pytest.mark.parametrize("name", ["missing.onnx", "missing.xml"])
def test_a_missing_file_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=rf"{name}: cannot be read"):
        metalad.load(tmp_path / name)


def test_openvino_weights_are_part_of_the_checksum(tmp_path: Path) -> None:
    file = exported_openvino(tmp_path / "model.xml")
    weights = file.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes() + b"x")
    with pytest.raises(ModelFileError, match="altered"):
        metalad.load(file)
    weights.unlink()
    with pytest.raises(ModelFileError, match=r"model\.bin, are missing"):
        metalad.load(file)


@FORMATS
def test_scores_maps_and_verdicts_are_those_of_the_file(make: Make, name: str, tmp_path: Path) -> None:
    model = metalad.load(make(tmp_path / name))
    assert (model.method, model.image_size, model.threshold, model.images) == ("metal", SIZE, THRESHOLD, 8)
    for seed in (0, 5):
        pixels = image(seed, (64, 40))
        resized = resize_image(pixels, SIZE)
        result = model.predict(pixels)
        assert result.score == pytest.approx(score_of(resized), rel=1e-6)
        assert result.is_anomalous == (score_of(resized) > THRESHOLD)
        assert result.anomaly_map.shape == (64, 40)
    many = model.predict([image(seed) for seed in range(5)])
    assert [each.score for each in many] == [model.predict(image(seed)).score for seed in range(5)]
    with pytest.raises(ConfigError, match="exported with the scoring calibrated"):
        model.predict(image(0), scoring="raw")
    with pytest.raises(ModelFileError, match="exported model, which can only predict"):
        metalad.evaluate(model, tmp_path)


def test_thresholds_for_other_rates_are_stored_or_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = metalad.load(exported_onnx(tmp_path / "x.onnx"))
    assert model.threshold_for(0.1) == 0.875
    expected = threshold(np.array(NORMAL_SCORES, np.float32), 0.3)
    assert model.threshold_for(0.3) == expected
    np.testing.assert_array_equal(model.out_of_fold_scores(), NORMAL_SCORES)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ConfigError, match=r"needs scipy.*0\.1"):
        model.threshold_for(0.3)


WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "scipy", "matplotlib", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from metalad.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_line_predicts_without_torch_scipy_and_matplotlib(tmp_path: Path) -> None:
    file, images = exported_onnx(tmp_path / "x.onnx"), tmp_path / "images"
    images.mkdir()
    for seed in (0, 5):
        Image.fromarray(image(seed)).save(images / f"{seed}.png")
    arguments = ["predict", str(file), str(images), "--out", str(tmp_path / "out"), "--json"]
    process = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run([*process, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["score"] for line in lines] == pytest.approx([score_of(image(0)), score_of(image(5))])
    assert (tmp_path / "out" / "index.html").is_file()
    assert Path(lines[1]["overlay"]).is_file()
    refused = subprocess.run(
        [*process, "train", str(images), "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "metalad.train needs torch, which is not installed; install metalad" in refused.stderr
