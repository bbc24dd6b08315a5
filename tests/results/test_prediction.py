"""The result for one image: decision, mask, regions, files, JSON and the notebook's view."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from metalad.results.prediction import NOTEBOOK_SIDE, Result, SavedPrediction
from metalad.results.regions import Region, find_regions
from metalad.runtime.errors import ImageError, RunError
from tests.overlays import exact_overlay

SIZE = (60, 90)
IMAGE = np.stack([np.add.outer(np.arange(60) * a, np.arange(90) * b) for a, b in ((1, 1), (2, 0), (0, 2))], 2).astype(
    np.uint8
)
MAPS = hnp.arrays(np.float32, (7, 9), elements=st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0, 3.0]))


def some_map() -> np.ndarray:
    anomaly_map = np.full(SIZE, 0.1, np.float32)
    anomaly_map[10:20, 30:45] = 0.9
    anomaly_map[40:44, 5:9] = 0.7
    return anomaly_map


def result(threshold: float = 0.5, path: Path | None = None, image: np.ndarray = IMAGE) -> Result:
    return Result(0.9, threshold, some_map(), path, lambda: image)


def pixels_of(path: Path | None) -> np.ndarray:
    assert path is not None
    with Image.open(path) as image:
        return np.array(image)


# Decision, mask and regions


def test_an_image_is_anomalous_if_its_score_exceeds_the_threshold() -> None:
    assert result(0.5).is_anomalous
    assert not result(0.9).is_anomalous
    assert result(float(np.nextafter(0.9, 0))).is_anomalous
    assert not result(np.inf).is_anomalous


@settings(max_examples=50, deadline=None)
@given(MAPS, st.sampled_from([0.1, 0.5, 0.6, 2.0, 5.0]))
def test_mask_and_regions_are_where_the_map_exceeds_the_threshold(anomaly_map: np.ndarray, threshold: float) -> None:
    found = Result(float(anomaly_map.max()), threshold, anomaly_map)
    np.testing.assert_array_equal(found.mask, anomaly_map.astype(np.float64) > threshold)
    assert found.regions == find_regions(anomaly_map, threshold)
    assert sum(region.area for region in found.regions) == found.mask.sum()
    assert found.is_anomalous == found.mask.any() == bool(found.regions)
    if found.regions:
        assert found.regions[0].peak_score == found.score
    for region in found.regions:
        left, top, width, height = region.box
        assert found.mask[top : top + height, left : left + width].sum() >= region.area


def test_regions_are_computed_once() -> None:
    one = result()
    assert one.regions is one.regions
    assert [region.box for region in one.regions] == [(30, 10, 15, 10), (5, 40, 4, 4)]


# The overlay


def test_the_overlay_is_the_map_over_the_image() -> None:
    overlay = result().overlay()
    assert overlay.size == (90, 60)
    np.testing.assert_array_equal(np.array(overlay), exact_overlay(IMAGE, some_map(), 0.5))
    assert (np.array(overlay) == (0, 229, 204)).all(-1).any()
    np.testing.assert_array_equal(np.array(result(1e9).overlay()), IMAGE)


def test_a_result_without_its_image_has_no_overlay() -> None:
    bare = Result(0.9, 0.5, some_map())
    assert bare.to_dict()["score"] == 0.9
    with pytest.raises(ValueError, match="made without its image; overlays need it"):
        bare.overlay()


def test_an_image_that_can_no_longer_be_read_is_an_error() -> None:
    def gone() -> np.ndarray:
        raise ImageError(Path("gone.png"), "no such file")

    with pytest.raises(ImageError, match=r"cannot read gone\.png: no such file"):
        Result(0.9, 0.5, some_map(), Path("gone.png"), gone).overlay()


# Files


@pytest.mark.parametrize(
    ("path", "name", "stem"), [(Path("/data/part 7.png"), None, "part 7"), (None, None, "image"), (None, "x", "x")]
)
def test_save_writes_map_overlay_and_json(tmp_path: Path, path: Path | None, name: str | None, stem: str) -> None:
    out = tmp_path / "deep" / "out"
    saved = result(path=path).save(out, name=name)
    files = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert files == {f"maps/{stem}.png", f"overlays/{stem}.jpg", f"{stem}.json"}
    assert (saved.map, saved.overlay) == (out / "maps" / f"{stem}.png", out / "overlays" / f"{stem}.jpg")
    steps = pixels_of(saved.map)
    assert steps.dtype == np.uint16
    np.testing.assert_allclose(steps / 16384 * 0.5, some_map(), atol=0.51 / 16384)
    difference = pixels_of(saved.overlay).astype(int) - np.array(result().overlay()).astype(int)
    assert np.abs(difference).mean() < 4  # a JPEG
    stored = json.loads((out / f"{stem}.json").read_text(encoding="utf-8"))
    assert stored == saved.to_dict()
    assert SavedPrediction.from_dict(stored, saved.threshold) == saved
    assert {name: stored[name] for name in result(path=path).to_dict()} == result(path=path).to_dict()


def test_saving_again_replaces_the_files(tmp_path: Path) -> None:
    result(0.5).save(tmp_path)
    saved = result(1e9).save(str(tmp_path))
    assert pixels_of(saved.map).max() == 0
    assert json.loads((tmp_path / "image.json").read_text())["is_anomalous"] is False
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_overlay_of_an_image_too_wide_for_jpeg_is_a_png(tmp_path: Path) -> None:
    wide = np.zeros((8, 66_000), np.float32)
    image = np.zeros((8, 66_000, 3), np.uint8)
    saved = Result(0.0, 1.0, wide, None, lambda: image).save(tmp_path)
    assert saved.overlay == tmp_path / "overlays" / "image.png"
    assert pixels_of(saved.overlay).shape == (8, 66_000, 3)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file"):
        result().save(tmp_path / "file")


# JSON


@pytest.mark.parametrize("path", [None, Path("a.png")])
@pytest.mark.parametrize("threshold", [0.5, 1e9])
def test_to_dict_is_json(path: Path | None, threshold: float) -> None:
    one = result(threshold, path)
    values = one.to_dict()
    assert list(values) == ["path", "score", "threshold", "is_anomalous", "height", "width", "regions"]
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["path"] == (None if path is None else "a.png")
    assert (values["score"], values["threshold"], values["is_anomalous"]) == (0.9, threshold, threshold < 0.9)
    assert (values["height"], values["width"]) == one.anomaly_map.shape
    assert tuple(map(Region.from_dict, values["regions"])) == one.regions
    assert len(values["regions"]) == (2 if threshold < 0.9 else 0)


def test_results_of_metalad_0_1_are_read() -> None:
    old = {"path": "a.png", "score": 0.7, "threshold": 0.5, "abnormal": True, "map": "maps/a.png", "overlay": None}
    read = SavedPrediction.from_dict(old, 0.5)
    assert read == SavedPrediction(Path("a.png"), 0.7, 0.5, True, (), Path("maps/a.png"), None)
    failed = SavedPrediction.from_dict({"path": "a.png", "error": "damaged"}, 0.5)
    assert failed == SavedPrediction(Path("a.png"), None, 0.5, None, (), None, None, "damaged")
    assert failed.to_dict() == {"path": "a.png", "error": "damaged"}


# Notebooks


@pytest.mark.parametrize(("threshold", "verdict"), [(0.5, "NG: anomalous"), (1.0, "OK")])
def test_a_notebook_shows_overlay_verdict_score_and_threshold(threshold: float, verdict: str) -> None:
    shown = result(threshold, Path("<b>&.png"))._repr_html_()
    assert f"<b>{verdict}</b>, score 0.9, threshold {threshold:.4g}" in shown
    assert "&lt;b&gt;&amp;.png" in shown
    assert "<b>&.png" not in shown
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', shown)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (90, 60)


def test_a_notebook_shows_a_large_overlay_reduced() -> None:
    large = Result(0.0, 1.0, np.zeros((600, 1200), np.float32), None, lambda: np.zeros((600, 1200, 3), np.uint8))
    (data,) = re.findall(r'base64,([^"]+)"', large._repr_html_())
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (NOTEBOOK_SIDE, NOTEBOOK_SIDE // 2)
    assert "<br>" not in large._repr_html_()
