"""Frames of videos, cameras and streams."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metalad.data import live, video
from metalad.data.images import read_image
from metalad.data.live import LiveFrame, LiveSource, LiveStream, live_source
from metalad.data.pages import split_page
from metalad.data.reading import with_pages
from metalad.data.video import decoded_in_order, frame_path, list_frames, read_frame, split_frame
from metalad.runtime.errors import ConfigError, DataError, ImageError
from tests.data.videos import COLORS, write_video

# Video files


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.avi", frames=10)


def number_of(pixels: np.ndarray) -> int:
    """The frames of the clip have gray levels of 20 times their number."""
    return round(float(pixels.mean()) / 20)


def test_frames_are_listed_with_number_and_time(clip: Path) -> None:
    paths = list(list_frames(clip, every=4))
    assert [path.name for path in paths] == ["clip.avi[1@0.000s]", "clip.avi[5@0.160s]", "clip.avi[9@0.320s]"]
    assert [split_frame(path) for path in paths] == [(clip, 1), (clip, 5), (clip, 9)]
    assert len(list(list_frames(clip))) == 10
    assert list(with_pages([clip], 4)) == paths


def test_a_frame_has_the_same_pixels_in_any_order(clip: Path) -> None:
    paths = list(list_frames(clip))
    assert [number_of(read_frame(path)) for path in paths] == list(range(1, 11))
    for number in (10, 1, 7, 2, 2):
        assert number_of(read_image(clip.with_name(f"clip.avi[{number}]"))) == number


def test_colors_are_red_green_blue(tmp_path: Path) -> None:
    path = write_video(tmp_path / "colors.avi", frames=3, colors=True)
    found = [read_image(frame).reshape(-1, 3).mean(axis=0) for frame in list_frames(path)]
    np.testing.assert_allclose(found, COLORS, atol=8)


def test_threads_that_read_ahead_decode_the_file_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, original = list[Path](), video._opened

    def counted(path: Path) -> Any:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(video, "_opened", counted)
    video._reader.cache_clear()
    paths = [frame_path(clip, number, 0.0) for number in range(1, 11)]
    for start in range(0, 10, 5):
        held = [path for path, _ in zip(decoded_in_order(iter(paths[start:]), lambda path: path), range(5))]  # noqa: B905
        for path in reversed(held):
            read_frame(path)
    assert len(opened) == 1


def test_a_path_of_a_frame_is_a_path_of_a_page(clip: Path) -> None:
    path = frame_path(clip, 312, 12.48)
    assert path.name == "clip.avi[312@12.480s]"
    assert split_page(path) == (clip, 312)
    assert split_frame(clip.with_name("scan.tif[2]")) == (clip.with_name("scan.tif[2]"), None)


def test_unusable_videos_and_frames_are_image_errors(clip: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_bytes(b"x" * 1000)
    for path, reason in (
        (text, "not a video that OpenCV can decode"),
        (tmp_path / "missing.mp4", "no such file"),
    ):
        with pytest.raises(ImageError, match=reason):
            list(list_frames(path))
    with pytest.raises(ImageError, match="there is no frame 11: 10 can be decoded"):
        read_image(clip.with_name("clip.avi[11]"))
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "missing.mp4[1]")


def test_a_truncated_video_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = write_video(tmp_path / "clip.avi", frames=12)
    content = damaged.read_bytes()
    damaged.write_bytes(content[: content.rindex(b"00dc", 0, content.index(b"idx1")) - 1500])
    assert 0 < len(list(list_frames(damaged))) < 12
    assert "the file is damaged" in caplog.text


def test_without_opencv_the_extra_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    video._reader.cache_clear()
    with pytest.raises(ConfigError, match=r"install metalad\[video\]"):
        list(list_frames(clip))
    with pytest.raises(ConfigError, match=r"install metalad\[video\]"):
        read_image(clip.with_name("clip.avi[1]"))


# Live sources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("camera:0", LiveSource("camera:0", 0)),
        ("CAMERA:12", LiveSource("camera:12", 12)),
        ("rtsp://host:554/a/b", LiveSource("rtsp://host:554/a/b", "rtsp://host:554/a/b")),
        (Path("rtsp://me:secret@host/a"), LiveSource("rtsp://host/a", "rtsp://me:secret@host/a")),
        ("clip.mp4", None),
        ("camera", None),
        ("folder/camera:0", None),
        ("C:/images", None),
    ],
)
def test_texts_of_live_sources(text: object, expected: LiveSource | None) -> None:
    assert live_source(text) == expected


class Capture:
    """Stands for OpenCV's capture: gives frames as fast as they are wanted, and is then lost."""

    def __init__(self, frames: int, *, is_opened: bool = True, seconds: float = 0.0) -> None:
        self.left, self.is_opened, self.seconds = frames, is_opened, seconds
        self.count, self.entered, self.released = 0, threading.Event(), threading.Event()

    def isOpened(self) -> bool:  # noqa: N802
        return self.is_opened

    def grab(self) -> bool:
        self.entered.set()
        time.sleep(self.seconds)
        self.left -= 1
        self.count += 1
        return self.left >= 0

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.full((8, 8, 3), min(self.count, 255), np.uint8)

    def release(self) -> None:
        self.released.set()


def stream_of(*captures: Capture, every: int = 1) -> LiveStream:
    opened = iter(captures)
    return LiveStream(LiveSource("camera:0", 0), every, lambda _: next(opened, captures[-1]))


def take(stream: LiveStream, seconds: float = 5.0) -> LiveFrame:
    deadline = time.monotonic() + seconds
    while (frame := stream.take(0.05)) is None:
        assert time.monotonic() < deadline
    return frame


def test_a_slow_reader_gets_the_newest_frame_and_the_others_are_dropped() -> None:
    capture = Capture(100)
    stream = stream_of(capture, Capture(0, is_opened=False))
    stream.open()
    assert capture.released.wait(5)
    frame = take(stream)
    assert (frame.number, frame.pixels.max()) == (100, 100)
    assert frame.path.startswith("camera:0[2")
    assert stream.dropped == 99
    assert stream.take(0.0) is None
    stream.close()


def test_every_nth_frame_is_taken() -> None:
    capture = Capture(9)
    stream = stream_of(capture, Capture(0, is_opened=False), every=4)
    stream.open()
    assert capture.released.wait(5)
    assert take(stream).number == 9
    assert stream.dropped == 2
    stream.close()


def test_a_lost_source_is_opened_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(live, "FIRST_WAIT", 0.01)
    stream = stream_of(Capture(1), Capture(0, is_opened=False), Capture(1), Capture(10**6, seconds=0.005))
    stream.open()
    numbers = {take(stream).number for _ in range(3)}
    assert len(numbers) == 3
    assert "camera:0 is lost; opening it again" in caplog.text
    stream.close()


def test_a_silent_source_is_opened_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The call of OpenCV that waits for a frame may never return."""
    monkeypatch.setattr(live, "OPEN_SECONDS", 0.0)
    monkeypatch.setattr(live, "SILENT_SECONDS", 0.1)
    stream = stream_of(Capture(1, seconds=3.0), Capture(10**6, seconds=0.005))
    stream.open()
    assert take(stream, 2.0).number >= 1
    assert "gives no frames" in caplog.text
    stream.close()


def test_closing_waits_for_the_frame_that_is_read_but_not_for_a_source_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python aborts if it ends while a thread is in OpenCV."""
    for limit, seconds, ends in ((10.0, 0.2, True), (0.2, 2.0, False)):
        monkeypatch.setattr(live, "CLOSE_SECONDS", limit)
        capture = Capture(10**6, seconds=seconds)
        stream = stream_of(capture)
        stream.open()
        assert capture.entered.wait(5)
        stream.close()
        assert capture.released.is_set() is ends
        stream.close()


def test_a_source_that_is_closed_at_once_is_released() -> None:
    for _ in range(20):
        capture = Capture(10**6)
        stream = stream_of(capture)
        stream.open()
        stream.close()
        assert capture.released.is_set()


OPEN_AT_THE_END = """
import time
from metalad.data.live import LiveSource, LiveStream
from tests.data.test_video import Capture
class SlowToEnd(Capture):
    def release(self):
        time.sleep(0.5)
        print("released", flush=True)
frames = LiveStream(LiveSource("camera:0", 0), open_capture=lambda _: SlowToEnd(10**6, seconds=0.01)).frames()
next(frames)
"""


def test_a_source_that_is_left_open_is_closed_when_python_ends() -> None:
    command = [sys.executable, "-c", OPEN_AT_THE_END]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout == "released\n"


def test_a_camera_that_is_not_there_is_refused() -> None:
    stream = stream_of(Capture(0, is_opened=False))
    with pytest.raises(DataError, match="cannot open camera:0"):
        stream.open()
    with pytest.raises(DataError, match="cannot open camera:987"):
        LiveStream(LiveSource("camera:987", 987)).open()


def test_frames_can_be_iterated_over() -> None:
    capture = Capture(10**6, seconds=0.002)
    frames: Any = stream_of(capture).frames()
    numbers = [next(frames).number for _ in range(3)]
    assert numbers == sorted(set(numbers))
    frames.close()
    assert capture.released.wait(5)
