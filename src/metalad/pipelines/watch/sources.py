"""What `watch` scores: the files that arrive in a folder, the frames of a video, or those of a live source."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from metalad.data.content import current_file_hash
from metalad.data.images import write_image
from metalad.data.live import LiveFrame, LiveStream
from metalad.data.video import decoded_in_order, list_frames, read_frame
from metalad.pipelines.watch.arrivals import Arrivals, ReadyFile
from metalad.pipelines.watch.folder import Changes, WatchedFolder
from metalad.pipelines.watch.log import Log, Stamp
from metalad.pipelines.watch.moving import NG, OK
from metalad.pipelines.watch.scoring import Scorer, frame_name
from metalad.results.prediction import SavedPrediction
from metalad.runtime.errors import ImageError

SCAN_SECONDS = 60.0
"""The folder is listed this often even without notices, because the operating system drops some under load."""
IDLE_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """What was found out about a file or frame.

    file: its relative path and stamp; None for a frame. is_scored: false if it must be tried again.
    predictions: none for a file whose results are in the log. written: files of the frames.
    """

    file: tuple[str, Stamp] | None
    sha256: str | None
    predictions: Sequence[SavedPrediction] = ()
    written: Sequence[Path] = ()
    is_scored: bool = True


Job = Callable[[], Outcome]


class Source(ABC):
    """A source of images; its methods are called by one thread, its jobs by others."""

    @abstractmethod
    def jobs(self, limit: int) -> Iterator[Job]:
        """Yield what can be scored now, at most `limit` jobs; wait at most `IDLE_SECONDS`."""

    @abstractmethod
    def is_done(self) -> bool:
        """Return whether nothing is left now; called when no job is running."""

    @abstractmethod
    def finish(self, outcome: Outcome) -> None:
        """Receive the outcome of a job, after its results were stored."""

    @abstractmethod
    def next_due(self) -> float:
        """Return the seconds until `jobs` may yield more without a notice."""

    @abstractmethod
    def close(self) -> None:
        """End what runs in the background."""


class FolderSource(Source):
    """Image files in a folder.

    changes: notices of the operating system; without them the folder is listed every `scan_seconds`.
    """

    def __init__(
        self,
        folder: WatchedFolder,
        log: Log,
        scorer: Scorer,
        arrivals: Arrivals,
        changes: Changes | None,
        scan_seconds: float = SCAN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._log, self._scorer, self._arrivals = folder, log, scorer, arrivals
        self._changes, self._scan_seconds, self._clock = changes, scan_seconds, clock
        self._known: dict[str, Stamp] = {}
        self._next_scan = clock()

    def jobs(self, limit: int) -> Iterator[Job]:
        """Yield a job for each file that is completely written."""
        self._observe_changes()
        for ready in self._arrivals.ready(self._clock(), self._folder.stamp, limit):
            yield partial(self._score, ready)

    def is_done(self) -> bool:
        """List the folder again, and return whether no file is left."""
        if len(self._arrivals) == 0:
            self._scan()
        return len(self._arrivals) == 0

    def finish(self, outcome: Outcome) -> None:
        """Forget a scored file; have one that could not be decoded tried again."""
        assert outcome.file is not None
        path, stamp = outcome.file
        if outcome.is_scored:
            self._known[path] = stamp
            self._arrivals.finish(path, stamp)
        else:
            self._arrivals.reject(path, stamp, self._clock())

    def forget(self, path: str) -> None:
        """Let a file that was moved count as a new one when it arrives again."""
        self._known.pop(path, None)

    def next_due(self) -> float:
        """Return the seconds until a file has settled, or the folder is listed."""
        due = self._arrivals.next_due()
        return max(0.0, min(self._next_scan, self._next_scan if due is None else due) - self._clock())

    def close(self) -> None:
        """Stop receiving notices."""
        if self._changes is not None:
            self._changes.close()

    def _observe_changes(self) -> None:
        paths, must_scan = (set[str](), False) if self._changes is None else self._changes.take()
        if must_scan or self._clock() >= self._next_scan:
            self._scan()
            return
        for path in sorted(paths):
            relative = self._folder.relative(path)
            stamp = None if relative is None else self._folder.stamp(relative)
            if relative is not None and stamp is not None:
                self._observe(relative, stamp)

    def _scan(self) -> None:
        found = self._folder.scan()
        known = self._known
        self._known = {path: known[path] for path, _ in found if path in known}  # those of deleted files are dropped
        for path, stamp in found:
            self._observe(path, stamp)
        self._next_scan = self._clock() + self._scan_seconds

    def _observe(self, path: str, stamp: Stamp) -> None:
        if self._known.get(path) == stamp and path not in self._arrivals:
            return
        stored = self._log.stamp(path)
        if stored is not None and stored[0] == stamp and path not in self._arrivals:
            self._known[path] = stamp
        else:
            self._arrivals.observe(path, stamp, self._clock())

    def _score(self, ready: ReadyFile) -> Outcome:
        """Score a file, unless it is a known one: a copy with the same name and content, or a renamed one."""
        file, path = (ready.path, ready.stamp), self._folder.path(ready.path)
        try:
            sha256 = current_file_hash(path)
        except OSError as error:
            return self._unreadable(ready, str(error.strerror or error))
        stored = self._log.stamp(ready.path)
        if stored is not None and stored[1] == sha256:
            self._log.touched(ready.path, ready.stamp)
            return Outcome(file, sha256)
        if self._log.renamed(ready.path, ready.stamp, sha256, self._folder.exists):
            return Outcome(file, sha256)
        try:
            predictions = self._scorer.score_file(path, ready.path, sha256, is_last=ready.is_last)
        except ImageError:
            return Outcome(file, None, is_scored=False)
        if self._folder.stamp(ready.path) != ready.stamp:  # replaced meanwhile, or gone
            return Outcome(file, None, is_scored=False)
        return Outcome(file, sha256, predictions)

    def _unreadable(self, ready: ReadyFile, reason: str) -> Outcome:
        file = (ready.path, ready.stamp)
        if not ready.is_last or not self._folder.exists(ready.path):
            return Outcome(file, None, is_scored=False)
        path = self._folder.path(ready.path)
        result = SavedPrediction(path, None, self._scorer.threshold, None, (), None, None, reason)
        return Outcome(file, None, (result,))


class _FrameSource(Source):
    """Frames; with `target`, each is also written as a PNG file into `target/ok` or `target/ng`."""

    def __init__(self, scorer: Scorer, target: Path | None) -> None:
        self._scorer, self._target = scorer, target

    def finish(self, outcome: Outcome) -> None:
        """Do nothing: a frame is not scored again."""

    def next_due(self) -> float:
        """Return 0: there may be a frame at any time."""
        return 0.0

    def close(self) -> None:
        """Do nothing: no thread runs in the background."""

    def _score(self, path: Path, pixels: UInt8[np.ndarray, "_ _ 3"], sha256: str | None) -> Outcome:
        name = frame_name(path, sha256)
        saved = self._scorer.score_image(path, name, lambda _: pixels)
        if self._target is None:
            return Outcome(None, sha256, (saved,))
        file = self._target / (NG if saved.is_anomalous else OK) / f"{name}.png"
        write_image(file, pixels)
        return Outcome(None, sha256, (saved,), (file,))


class VideoSource(_FrameSource):
    """The frames of a video file that have no results yet; raises as `list_frames`."""

    def __init__(self, path: Path, every: int, log: Log, scorer: Scorer, target: Path | None) -> None:
        super().__init__(scorer, target)
        self._threshold = scorer.threshold
        self._sha256 = current_file_hash(path)
        done = log.paths_of(self._sha256)
        left = (frame for frame in list_frames(path, every) if str(frame) not in done)
        self._frames = decoded_in_order(left, lambda frame: frame)
        self._ended = False

    def jobs(self, limit: int) -> Iterator[Job]:
        """Yield a job for each of the next frames."""
        for _ in range(limit):
            frame = next(self._frames, None)
            if frame is None:
                self._ended = True
                return
            yield partial(self._score_frame, frame)

    def _score_frame(self, frame: Path) -> Outcome:
        try:
            return self._score(frame, read_frame(frame), self._sha256)
        except ImageError as error:
            result = SavedPrediction(frame, None, self._threshold, None, (), None, None, error.reason)
            return Outcome(None, self._sha256, (result,))

    def is_done(self) -> bool:
        """Return whether the last frame was scored."""
        return self._ended


class StreamSource(_FrameSource):
    """The newest frame of a live source whenever one can be scored."""

    def __init__(self, stream: LiveStream, scorer: Scorer, target: Path | None) -> None:
        super().__init__(scorer, target)
        self._stream = stream

    def jobs(self, limit: int) -> Iterator[Job]:
        """Yield a job for the newest frame."""
        frame = self._stream.take(IDLE_SECONDS) if limit > 0 else None
        if frame is not None:
            yield partial(self._score_live, frame)

    def _score_live(self, frame: LiveFrame) -> Outcome:
        return self._score(Path(frame.path), frame.pixels, None)

    def is_done(self) -> bool:
        """Return False: a live source does not end."""
        return False

    def close(self) -> None:
        """Close the source."""
        self._stream.close()
