"""Frames of videos and live sources in `watch`, `predict` and `Model.predict`: the same scores everywhere."""

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metalad
from metalad.data import live
from metalad.data.content import current_file_hash
from metalad.data.images import read_image
from metalad.data.live import LiveSource
from metalad.pipelines.watch.stored import stored_results
from metalad.runtime.errors import ConfigError, DataError, ImageError
from tests.data.videos import write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven frames, of which the fifth has a bright square."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.avi", frames=7, bright=5)


def summary(results: Any) -> list[tuple[str, float]]:
    return [(result.path.name, result.score) for result in results]


def test_frames_have_the_same_score_from_every_function(model: metalad.Model, clip: Path, tmp_path: Path) -> None:
    expected = summary(model.predict(clip, stream=True, every=2))
    numbers = ["clip.avi[1@0.000s]", "clip.avi[3@0.080s]", "clip.avi[5@0.160s]", "clip.avi[7@0.240s]"]
    assert [name for name, _ in expected] == numbers
    assert [model.predict(clip.with_name(name)).score for name in numbers] == [score for _, score in expected]
    assert summary(metalad.predict(model, [clip], tmp_path / "predicted", every=2)) == expected
    watched = list(metalad.watch(model, clip, tmp_path / "watched", every=2))
    assert summary(watched) == expected
    assert [result.is_anomalous for result in watched] == [False, False, True, False]
    for folder, stem in (("predicted", "clip"), ("watched", f"clip-{current_file_hash(clip)[:8]}")):
        names = [f"{stem}[{number}].jpg" for number in (1, 3, 5, 7)]
        assert sorted(path.name for path in (tmp_path / folder / "overlays").iterdir()) == names


def test_predict_resumes_within_a_video(model: metalad.Model, clip: Path, tmp_path: Path) -> None:
    expected = summary(metalad.predict(model, [clip], tmp_path / "whole"))
    results = metalad.predict(model, [clip], tmp_path / "resumed")
    list(itertools.islice(results, 3))
    results.close()
    assert summary(metalad.predict(model, [clip], tmp_path / "resumed", resume=True)) == expected


def test_watch_continues_within_a_video(model: metalad.Model, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert len(list(metalad.watch(model, clip, out, limit=3))) == 3
    assert len(list(metalad.watch(model, clip, out))) == 4
    assert list(metalad.watch(model, clip, out)) == []
    assert len(list(stored_results(out))) == 7


def test_frames_are_written_into_ok_and_ng(model: metalad.Model, clip: Path, tmp_path: Path) -> None:
    results = list(metalad.watch(model, clip, tmp_path / "out", move=tmp_path))
    stem = f"clip-{current_file_hash(clip)[:8]}"
    moved = [tmp_path / f"ok/{stem}[4].png", tmp_path / f"ng/{stem}[5].png"]
    assert [result.moved_to for result in results][3:5] == moved
    assert results[4].path is not None
    assert results[4].moved_to is not None
    np.testing.assert_array_equal(read_image(results[4].moved_to), read_image(results[4].path))


class Camera:
    """Stands for OpenCV's capture: each frame is a little brighter than the one before."""

    def __init__(self, *_: object) -> None:
        self.count = 0

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def grab(self) -> bool:
        self.count += 1
        threading.Event().wait(0.005)
        return True

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.full((32, 24, 3), min(self.count, 255), np.uint8)

    def release(self) -> None:
        pass


def test_a_camera_gives_results_until_the_limit(
    model: metalad.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_capture_of", Camera)
    results = list(metalad.watch(model, "camera:0", tmp_path / "out", limit=4, every=2, move=tmp_path))
    scores = [result.score or 0 for result in results]
    assert scores == sorted(set(scores))
    assert [str(result.path).startswith("camera:0[2") for result in results] == [True] * 4
    assert len(list((tmp_path / "ok").iterdir())) == len(list((tmp_path / "out/overlays").iterdir())) == 4
    frames = model.predict("camera:0", stream=True)
    assert [next(frames).score > 0 for _ in range(3)] == [True] * 3
    frames.close()


def test_unusable_videos_and_sources_are_errors_in_one_line(model: metalad.Model, clip: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_bytes(b"x" * 1000)
    with pytest.raises(ImageError, match="not a video"):
        list(metalad.watch(model, text, tmp_path / "out"))
    with pytest.raises(ImageError, match="not a video"):
        list(metalad.predict(model, [text], tmp_path / "out"))
    with pytest.raises(DataError, match="metalad watch RUN camera:0"):
        metalad.predict(model, ["camera:0"], tmp_path / "out")
    with pytest.raises(ConfigError, match="use stream=True"):
        model.predict("camera:0")
    with pytest.raises(ConfigError, match="every is 0"):
        model.predict(clip, every=0)
    with pytest.raises(ConfigError, match="every is 0"):
        metalad.predict(model, [clip], tmp_path / "out", every=0)
    with pytest.raises(ConfigError, match="for folders"):
        metalad.watch(model, clip, tmp_path / "out", new_only=True)
    assert LiveSource("camera:0", 0) == live.live_source("camera:0")
