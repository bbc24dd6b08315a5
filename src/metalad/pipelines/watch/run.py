"""Score images as they arrive, and log the results, so that a killed process neither loses one nor scores it twice."""

import math
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from metalad.data.content import file_hash
from metalad.data.images import MAPS, OVERLAYS
from metalad.data.live import LiveSource, LiveStream, live_source
from metalad.data.video import is_video
from metalad.data.walking import require_folder
from metalad.inference.stream import MAX_WORKERS
from metalad.pipelines.load import load
from metalad.pipelines.model import Model
from metalad.pipelines.watch.arrivals import Arrivals
from metalad.pipelines.watch.folder import Changes, WatchedFolder
from metalad.pipelines.watch.log import NAME, Log, Move, Outbox
from metalad.pipelines.watch.moving import NG, OK, Mover
from metalad.pipelines.watch.mqtt import Broker, Publisher
from metalad.pipelines.watch.outbox import CommandRunner, Worker
from metalad.pipelines.watch.scoring import Scorer
from metalad.pipelines.watch.sources import SCAN_SECONDS, FolderSource, Outcome, Source, StreamSource, VideoSource
from metalad.results.logged import LoggedPrediction
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import ConfigError, DataError
from metalad.runtime.files import delete_temporaries
from metalad.runtime.lock import exclusive_lock
from metalad.runtime.progress import logger
from metalad.runtime.settings import number, whole_number

LOCK = Path(".watch") / "lock"
TICK = 0.2
"""Seconds after which a request to stop is noticed."""
PUBLISH_SECONDS = 10.0
"""How long the next acknowledgment of the broker is waited for at the end, except after a request to stop."""


def watch(
    model: "str | Path | Model",
    source: str | Path,
    out: str | Path,
    *,
    new_only: bool = False,
    once: bool = False,
    settle: float = 1.0,
    patience: float = 30.0,
    poll: float | None = None,
    every: int = 1,
    limit: int | None = None,
    on_anomalous: str | None = None,
    command_timeout: float = 60.0,
    mqtt: str | None = None,
    move: str | Path | None = None,
    maps: bool = True,
    overlays: bool = True,
    only_anomalous: bool = False,
    scoring: Scoring | None = None,
    false_alarms: float | None = None,
    threshold: float | None = None,
    device: str = "auto",
    stop: threading.Event | None = None,
) -> Generator[LoggedPrediction, None, None]:
    """Score each image that arrives in a folder, or frames of a camera, a stream or a video, and yield the results.

    The results are stored in `out/results.sqlite` before they are yielded. An image is identified by its path and its
    content: a file that is overwritten with another image is scored again. A process that is killed, even by `kill -9`,
    continues where it was when it is started again: no image is lost, and none has two results. Close the generator to
    stop: images in work are finished and stored.

    Args:
        model: a run folder, a model file or an exported file; in Python also a model that was read from one.
        source: a folder, whose subfolders are watched, too; a video file; a camera such as `camera:0`; or the URL of a
            stream, such as `rtsp://host/stream`.
        out: gets `results.sqlite`, `maps/` and `overlays/`; may be in the watched folder.
        new_only: skip the images that are there at the start; after a crash, those that arrived before it are scored.
        once: stop when no image is left, and all commands have run.
        settle: seconds for which a file must not change before it is read.
        patience: seconds for which an unchanged file that cannot be decoded is tried again, before it is recorded as
            unreadable.
        poll: list the folder every so many seconds, instead of waiting for notices of the operating system, which
            network drives do not send.
        every: score every n-th frame of a video or a live source.
        limit: stop after this many results.
        on_anomalous: a program with arguments that is run for each anomalous image, with the path as its last argument
            and the result as JSON on its standard input.
        command_timeout: seconds after which that program is ended.
        mqtt: publish each result as JSON: the URL of a broker with the topic, such as `mqtt://user@host:1883/topic`, or
            `mqtts` with TLS; the password is read from the environment variable `METALAD_MQTT_PASSWORD`.
        move: a folder: move each scored file into its subfolder `ok` or `ng`; write frames there.
        maps: write the anomaly maps, 16-bit gray PNG files of the images' own sizes; 16384 is the threshold.
        overlays: write the images with the map over them, and an outline where it exceeds the threshold.
        only_anomalous: write maps and overlays of anomalous images only.
        scoring: `calibrated` or `raw`; the model's own by default.
        false_alarms: wanted fraction of good images above the threshold; the model's own by default.
        threshold: the score above which an image is anomalous, instead of the one for a false-alarm rate.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        stop: stops as closing the generator does, but also while it waits; for another thread.

    Raises:
        ModelFileError: no usable model. DataError: no such folder or camera. ConfigError: an impossible setting, or a
            package that is not installed. ImageError: not a video. RunError: `out` cannot be written or is in
            use, or the broker did not take the results that are left when `once` or `limit` is reached.
            The first three are raised by the call, the others while results are taken; so is a DataError for folders
            that cannot be read, with `once` after all other images.
    """
    _check(settle=settle, patience=patience, command_timeout=command_timeout)
    _check_source(source, new_only=new_only, once=once, poll=poll, every=every, limit=limit)
    loaded = model if isinstance(model, Model) else load(model, device=device)
    caution = loaded.caution(false_alarms, scoring) if threshold is None else None
    limit_score = loaded.opened.threshold_or(threshold, false_alarms, scoring)
    scorer = Scorer(
        loaded, Path(out), scoring, limit_score, caution.severity if caution else None, maps, overlays, only_anomalous
    )
    if caution:
        logger.warning("%s", caution)
    watcher = _Watcher(scorer, source, None if move is None else Path(move), once=once, limit=limit)
    watcher.set_outboxes(on_anomalous, command_timeout, None if mqtt is None else Broker.of(mqtt))
    return watcher.results(
        Arrivals(settle, patience), poll=poll, every=every, new_only=new_only, stop=stop or threading.Event()
    )


def _check(**seconds: float) -> None:
    for name, value in seconds.items():
        if not 0 <= number(name, value) < math.inf:
            raise ConfigError(f"{name} is {value}; it must be a number of seconds, 0 or more")


def _check_source(
    source: str | Path, *, new_only: bool, once: bool, poll: float | None, every: int, limit: int | None
) -> None:
    if whole_number("every", every) < 1:
        raise ConfigError(f"every is {every}; it must be at least 1")
    if limit is not None and whole_number("limit", limit) < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1")
    if poll is not None and not 0 < number("poll", poll) < math.inf:
        raise ConfigError(f"poll is {poll}; it must be a number of seconds above 0")
    if new_only and once:
        raise ConfigError("new_only and once exclude each other: nothing would be scored")
    live = live_source(source)
    is_folder = live is None and not (is_video(Path(source)) and Path(source).is_file())
    if is_folder:
        require_folder(Path(source))
    if is_folder and every != 1:
        raise ConfigError("every is for frames of a video or a camera; a folder is scored whole")
    if not is_folder and (new_only or poll is not None):
        raise ConfigError("new_only and poll are for folders; leave them out for a video or a camera")
    if live is not None and once:
        raise ConfigError(f"{live.name} has no end, so once would never stop; use limit instead")


class _Watcher:
    """One run of `watch`."""

    def __init__(
        self, scorer: Scorer, source: str | Path, target: Path | None, *, once: bool, limit: int | None
    ) -> None:
        self._scorer, self._from, self._target = scorer, source, target
        self._once, self._limit = once, limit
        self._model = None if scorer.model.path is None else file_hash(scorer.model.path)
        self._workers = max(1, min(os.cpu_count() or 1, MAX_WORKERS))
        self._wake = threading.Event()
        self._command: tuple[str, float] | None = None
        self._broker: Broker | None = None
        self._count = 0

    def set_outboxes(self, command: str | None, timeout: float, broker: Broker | None) -> None:
        """Set what is done for results."""
        self._command = None if command is None else (command, timeout)
        self._broker = broker

    def results(
        self, arrivals: Arrivals, *, poll: float | None, every: int, new_only: bool, stop: threading.Event
    ) -> Generator[LoggedPrediction, None, None]:
        """Yield results until `stop` is set."""
        out = self._scorer.out
        with exclusive_lock(out / LOCK, "watch"):
            _delete_stale(out)
            log = Log(out / NAME)
            workers: list[Worker] = []
            try:
                workers = self._started(log)
                live = live_source(self._from)
                if live is not None:
                    yield from self._all(self._stream(live, every), log, None, workers, stop)
                elif is_video(Path(self._from)):
                    video = VideoSource(Path(self._from), every, log, self._scorer, self._target)
                    yield from self._all(video, log, None, workers, stop)
                else:
                    yield from self._from_folder(arrivals, log, workers, poll, new_only, stop)
                for worker in workers:
                    if isinstance(worker, Publisher) and not stop.is_set():
                        worker.require_published()
            finally:
                for worker in workers:
                    worker.close()
                log.close()

    def _started(self, log: Log) -> list[Worker]:
        workers: list[Worker] = []
        if self._command is not None:
            workers.append(CommandRunner(log, *self._command))
        if self._broker is not None:
            workers.append(Publisher(log, self._broker))
        for worker in workers:
            worker.start()
        return workers

    def _stream(self, live: LiveSource, every: int) -> Source:
        stream = LiveStream(live, every)
        stream.open()
        return StreamSource(stream, self._scorer, self._target)

    def _from_folder(
        self,
        arrivals: Arrivals,
        log: Log,
        workers: Sequence[Worker],
        poll: float | None,
        new_only: bool,
        stop: threading.Event,
    ) -> Iterator[LoggedPrediction]:
        path, excluded = Path(self._from), [self._scorer.out / MAPS, self._scorer.out / OVERLAYS]
        if self._target is not None:
            excluded += [self._target / OK, self._target / NG]
        folder = WatchedFolder(path, excluded)
        mover = Mover(log, folder, self._target)
        mover.finish_all()
        if new_only and not log.is_running:
            log.skip(folder.scan())
        log.begin()
        changes = None if poll is not None or self._once else Changes(path, self._wake.set)
        source = FolderSource(folder, log, self._scorer, arrivals, changes, poll or SCAN_SECONDS)
        try:
            yield from self._all(source, log, mover, workers, stop)
        except (GeneratorExit, KeyboardInterrupt):
            log.end()
            raise
        log.end()
        if self._once and folder.unreadable:  # otherwise, the folder may come back
            raise DataError(f"cannot read {', '.join(folder.unreadable)}; images there are not scored")

    def _all(
        self, source: Source, log: Log, mover: Mover | None, workers: Sequence[Worker], stop: threading.Event
    ) -> Iterator[LoggedPrediction]:
        """Run the jobs of a source, at most as many at once as there are cores, and store their outcomes in order."""
        pool = ThreadPoolExecutor(self._workers, "metalad-watch")
        running: deque[Future[Outcome]] = deque()
        try:
            while not (self._is_full() or (stop.is_set() and not running)):
                self._wake.clear()
                if not stop.is_set():
                    self._submit(source, pool, running)
                while running and running[0].done():
                    yield from self._stored(running.popleft().result(), source, log, mover, workers)
                _raise_failures(workers)
                if not running and self._once_done(source):
                    break
                if not (running and running[0].done()):
                    self._wake.wait(TICK if running else min(TICK, source.next_due()))
            for worker in workers:
                worker.drain(stop.is_set, PUBLISH_SECONDS if isinstance(worker, Publisher) else math.inf)
            _raise_failures(workers)
        finally:
            source.close()
            try:
                while running:
                    outcome = running.popleft().result()
                    list(self._stored(outcome, source, log, mover, workers))
            finally:
                pool.shutdown()

    def _submit(self, source: Source, pool: ThreadPoolExecutor, running: deque[Future[Outcome]]) -> None:
        room = self._workers - len(running)
        if self._limit is not None:
            room = min(room, self._limit - self._count - len(running))
        for job in source.jobs(room) if room > 0 else ():
            running.append(pool.submit(job))
            running[-1].add_done_callback(lambda _: self._wake.set())

    def _is_full(self) -> bool:
        return self._limit is not None and self._count >= self._limit

    def _once_done(self, source: Source) -> bool:
        return (self._once or isinstance(source, VideoSource)) and source.is_done()

    def _stored(
        self, outcome: Outcome, source: Source, log: Log, mover: Mover | None, workers: Sequence[Worker]
    ) -> Iterator[LoggedPrediction]:
        outboxes: list[Outbox] = []
        if self._command is not None:
            outboxes.append("command")
        if self._broker is not None:
            outboxes.append("mqtt")
        logged: list[LoggedPrediction] = []
        kind = _kind(outcome) if mover is not None and self._target is not None else None
        if outcome.predictions:
            logged = log.add(
                outcome.file,
                outcome.sha256,
                outcome.predictions,
                model=self._model,
                move=kind,
                moved_to=outcome.written,
                outboxes=outboxes,
            )
        source.finish(outcome)
        self._count += len(logged)
        if logged and mover is not None and kind is not None and outcome.file is not None and outcome.sha256:
            destination = mover.move(Move(*outcome.file, outcome.sha256, kind, None))
            if destination is not None:
                assert isinstance(source, FolderSource)
                source.forget(outcome.file[0])
                logged = [result.moved(destination) for result in logged]
        for worker in workers:
            worker.notify()
        yield from logged


def _kind(outcome: Outcome) -> str | None:
    """Return the folder for a file: ng if one of its pages is anomalous, ok if none is; None if one is unreadable."""
    if any(result.is_anomalous for result in outcome.predictions):
        return NG
    return None if any(result.error is not None for result in outcome.predictions) else OK


def _raise_failures(workers: Sequence[Worker]) -> None:
    for worker in workers:
        if worker.failure is not None:
            raise worker.failure


def _delete_stale(out: Path) -> None:
    """Delete the temporary files of pictures that a killed process left."""
    for folder in (out / MAPS, out / OVERLAYS):
        if folder.is_dir():
            for below in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
                delete_temporaries(below)
