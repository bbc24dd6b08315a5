"""Frames of video files, by OpenCV: their list, paths such as `clip.mp4[312@12.480s]` that select one, and pixels.

A frame is addressed by its number, from 1, because seeking by time is inexact for many codecs; the time in the path is
for the reader. For the same reason, frames are reached by decoding from the start of the file, never by seeking.
"""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from metalad.data.pages import split_page
from metalad.runtime.errors import ImageError
from metalad.runtime.packages import require_packages
from metalad.runtime.progress import logger

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov"})
"""Suffixes of the files that are read as videos, in lower case."""
HELD_FRAMES = 32
"""Decoded frames that are held, because overlays need a large frame a second time."""
_READERS = 2

Item = TypeVar("Item")


def is_video(path: Path) -> bool:
    """Return whether a path is that of a video file, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def split_frame(path: Path) -> tuple[Path, int | None]:
    """Return the video file and the frame number, from 1, of a path such as `clip.mp4[312@12.480s]`.

    The number is None for any other path, and for a file whose own name ends this way.
    """
    file, number = split_page(path)
    return (file, number) if number is not None and is_video(file) else (path, None)


def frame_path(path: Path, number: int, seconds: float) -> Path:
    """Return the path that selects a frame of a video file, by its number from 1, with its time in the video."""
    return path.with_name(f"{path.name}[{number}@{max(seconds, 0.0):.3f}s]")


def list_frames(path: Path, every: int = 1) -> Iterator[Path]:
    """Yield the paths of the first frame of a video file and of each `every`-th one after it.

    The file is decoded to its end, because the number of frames in its header can be wrong.

    Raises:
        ImageError: the file does not exist, is no video, or has no frames. ConfigError: OpenCV is not installed.
    """
    capture = _opened(path)
    rate = capture.get(open_cv().CAP_PROP_FPS)
    expected = int(capture.get(open_cv().CAP_PROP_FRAME_COUNT))
    number = 0
    try:
        while capture.grab():
            number += 1
            if (number - 1) % every == 0:
                yield frame_path(path, number, _seconds(capture, number, rate))
    finally:
        capture.release()
    if number == 0:
        raise ImageError(path, "no frame can be decoded", "copy it again, or convert it to H.264 in an .mp4 file")
    if number < 0.9 * expected:
        logger.warning("%s: %d of about %d frames can be decoded; the file is damaged", path, number, expected)


def read_frame(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Return the frame that a path such as `clip.mp4[312@12.480s]` selects as RGB bytes; do not change the array.

    Frames of one video are fastest in increasing order; threads may read at once.

    Raises:
        ImageError: there is no such file or frame. ConfigError: OpenCV is not installed.
    """
    video, number = split_frame(path)
    assert number is not None
    try:
        status = video.stat()
    except OSError as error:
        raise ImageError(video, "no such file") from error
    return _reader(video.absolute(), status.st_size, status.st_mtime_ns).read(path, number)


def decoded_in_order(items: Iterable[Item], path_of: Callable[[Item], Path | None]) -> Iterator[Item]:
    """Yield the items as they are; of those that are frames, decode and hold the frame before.

    Worker threads may read frames in another order than that of the video, and a frame before the last one that was
    decoded is only reached from the start of the file.
    """
    for item in items:
        path = path_of(item)
        if path is not None and split_frame(path)[1] is not None:
            with contextlib.suppress(ImageError):  # raised again when the item is processed
                read_frame(path)
        yield item


def open_cv() -> Any:
    """Return the module `cv2`, which prints nothing.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # before the import, which reads it
    require_packages("reading a video or a camera", {"cv2": "opencv-python-headless"}, "install metalad[video]")
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def as_rgb(frame: UInt8[np.ndarray, "..."]) -> UInt8[np.ndarray, "height width 3"]:
    """Return a frame of OpenCV, blue first or gray, as RGB bytes."""
    planes = frame[:, :, None] if frame.ndim == 2 else frame
    planes = np.repeat(planes, 3, axis=2) if planes.shape[2] == 1 else planes[:, :, 2::-1]
    return np.ascontiguousarray(planes)


class _Reader:
    """Decodes the frames of one video file, and holds the last ones."""

    def __init__(self, video: Path) -> None:
        self._video = video
        self._capture: Any = None
        self._decoded = 0
        self._held: OrderedDict[int, UInt8[np.ndarray, "_ _ 3"]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, number: int) -> UInt8[np.ndarray, "height width 3"]:
        with self._lock:
            if number not in self._held:
                self._held[number] = self._decode(path, number)
                while len(self._held) > HELD_FRAMES:
                    self._held.popitem(last=False)
            return self._held[number]

    def _decode(self, path: Path, number: int) -> UInt8[np.ndarray, "height width 3"]:
        if self._capture is None or number <= self._decoded:
            if self._capture is not None:
                self._capture.release()
            self._capture, self._decoded = _opened(self._video), 0
        while self._decoded < number:
            if not self._capture.grab():
                raise ImageError(path, f"there is no frame {number}: {self._decoded} can be decoded")
            self._decoded += 1
        is_decoded, frame = self._capture.retrieve()
        if not is_decoded:
            raise ImageError(path, f"frame {number} is damaged")
        return as_rgb(frame)


@lru_cache(maxsize=_READERS)
def _reader(video: Path, *_: int) -> _Reader:
    return _Reader(video)


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise ImageError(path, "no such file")
    cv2 = open_cv()
    # OpenCV's own reader, which it tries after FFmpeg, prints about files that it does not know.
    has_ffmpeg = cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG if has_ffmpeg else cv2.CAP_ANY)
    if not capture.isOpened():
        raise ImageError(path, "not a video that OpenCV can decode", "convert it to H.264 in an .mp4 file")
    return capture


def _seconds(capture: Any, number: int, rate: float) -> float:
    """Return the time of the frame that was grabbed last; from the frame rate if the file has no time stamps."""
    seconds = float(capture.get(open_cv().CAP_PROP_POS_MSEC)) / 1000
    return seconds if seconds > 0 or not rate > 0 else (number - 1) / rate
