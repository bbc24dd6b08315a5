"""Frames of cameras and network streams, by OpenCV: the newest one at a time, with reconnection."""

import atexit
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jaxtyping import UInt8

from metalad.data.video import as_rgb, open_cv
from metalad.runtime.errors import DataError
from metalad.runtime.progress import logger

OPEN_SECONDS = 10.0
SILENT_SECONDS = 10.0
"""A source that gives no frame for this long is opened again."""
FIRST_WAIT, MAX_WAIT = 1.0, 30.0
"""Seconds between two attempts to open a lost source: the first, which is doubled each time, and the longest."""
CLOSE_SECONDS = 2.0
"""Longest wait for the frame that is being read when a source is closed."""
TICK = 0.2
_CAMERA = re.compile(r"camera:(\d{1,3})", re.IGNORECASE)
# `Path` turns the two slashes of a URL into one.
_STREAM = re.compile(r"(?P<scheme>rtsps?|rtmp|https?|udp|tcp|srt):/+(?P<login>[^/@]*@)?(?P<rest>.+)", re.IGNORECASE)


@dataclass(frozen=True)
class LiveSource:
    """A camera, by number, or a network stream, by URL.

    name: for results and messages; it has no user and no password.
    """

    name: str
    address: int | str


def live_source(text: object) -> LiveSource | None:
    """Return the live source that a text such as `camera:0` or `rtsp://host/stream` names; None for another text."""
    if match := _CAMERA.fullmatch(str(text)):
        return LiveSource(f"camera:{int(match[1])}", int(match[1]))
    if match := _STREAM.fullmatch(str(text)):
        scheme = match["scheme"].lower()
        return LiveSource(f"{scheme}://{match['rest']}", f"{scheme}://{match['login'] or ''}{match['rest']}")
    return None


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """A frame of a live source.

    path: such as `camera:0[2026-11-29T08:15:02.480Z]`, of a stream `rtsp:host/stream[...]`. time: when it arrived, in
    UTC. number: of the frame since the start, from 1; those between two that are returned were dropped or not wanted.
    """

    path: str
    time: datetime
    number: int
    pixels: UInt8[np.ndarray, "height width 3"]


class LiveStream:
    """Frames of a live source: a thread decodes them, and holds only the newest.

    Whoever takes frames more slowly than they arrive gets the newest one, and those between are dropped.
    """

    def __init__(
        self, source: LiveSource, every: int = 1, open_capture: Callable[[LiveSource], Any] | None = None
    ) -> None:
        self._source, self._every = source, every
        self._open = open_capture or _capture_of
        self._changed = threading.Condition()
        self._newest: LiveFrame | None = None
        self._number = 0
        self._heard = time.monotonic()
        self._generation = 0
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def open(self) -> None:
        """Open the source.

        Raises:
            DataError: it cannot be opened. ConfigError: OpenCV is not installed.
        """
        capture = self._open(self._source)
        if not capture.isOpened():
            raise DataError(f"cannot open {self._source.name}; check that it is connected, and not used elsewhere")
        self._start(capture)
        atexit.register(self.close)  # a thread that returns from OpenCV while Python ends aborts the process

    def close(self) -> None:
        """End the thread after its current frame, or leave it to itself if none arrives soon."""
        atexit.unregister(self.close)
        self._generation += 1
        # The garbage collector may call this in the thread itself.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_SECONDS)

    def take(self, timeout: float = TICK) -> LiveFrame | None:
        """Return the newest frame that was not yet taken; None if there is none within `timeout` seconds.

        A source that was lost is opened again, and so is one that is silent.
        """
        with self._changed:
            if self._newest is None:
                self._changed.wait(timeout)
            frame, self._newest = self._newest, None
        if frame is None and time.monotonic() - self._heard > SILENT_SECONDS:
            # The reading call of OpenCV may never return; its thread is left to itself.
            logger.warning("%s gives no frames; opening it again", self._source.name)
            self._start(None)
        return frame

    def frames(self) -> Iterator[LiveFrame]:
        """Open the source and yield frames without end; raises as `open`."""
        self.open()
        try:
            while True:
                if (frame := self.take()) is not None:
                    yield frame
        finally:
            self.close()

    def _start(self, capture: Any) -> None:
        self._generation += 1
        self._heard = time.monotonic() + OPEN_SECONDS
        self._thread = threading.Thread(
            target=self._read, args=(capture, self._generation), name="metalad-camera", daemon=True
        )
        self._thread.start()

    def _read(self, capture: Any, generation: int) -> None:
        wait = FIRST_WAIT
        while generation == self._generation:
            if capture is None:
                capture = self._open(self._source)
            if capture.isOpened():
                if self._read_open(capture, generation):
                    wait = FIRST_WAIT
                if generation == self._generation:
                    logger.warning("%s is lost; opening it again", self._source.name)
            capture.release()
            capture = None
            deadline = time.monotonic() + wait
            while generation == self._generation and (left := deadline - time.monotonic()) > 0:
                self._heard = time.monotonic()  # waiting is not silence
                time.sleep(min(TICK, left))
            self._heard = time.monotonic() + OPEN_SECONDS
            wait = min(2 * wait, MAX_WAIT)
        if capture is not None:  # closed before the first frame
            capture.release()

    def _read_open(self, capture: Any, generation: int) -> bool:
        """Read frames until the source is lost; return whether there were any."""
        has_frames = False
        while generation == self._generation and capture.grab():
            has_frames = True
            self._number += 1
            self._heard = time.monotonic()
            if (self._number - 1) % self._every:
                continue
            is_decoded, pixels = capture.retrieve()
            if is_decoded:
                self._hold(as_rgb(pixels))
        return has_frames

    def _hold(self, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        now = datetime.now(UTC)
        text = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with self._changed:
            self.dropped += self._newest is not None
            self._newest = LiveFrame(f"{self._source.name.replace('://', ':')}[{text}]", now, self._number, pixels)
            self._changed.notify()


def _capture_of(source: LiveSource) -> Any:
    cv2 = open_cv()
    if isinstance(source.address, int):
        return cv2.VideoCapture(source.address)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000 * int(OPEN_SECONDS)]
    limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000 * int(SILENT_SECONDS)]
    return cv2.VideoCapture(source.address, cv2.CAP_FFMPEG, limits)
