"""Work that remains to be done for stored results, by a thread, in the order of the results and at least once."""

import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import IO

from metalad.data.pages import split_page
from metalad.pipelines.watch.log import DONE, Log
from metalad.results.logged import LoggedPrediction
from metalad.runtime.errors import ConfigError
from metalad.runtime.progress import logger

IDLE_SECONDS = 1.0
WAIT_SECONDS = 0.2
STOP_SECONDS = 10.0
"""How long a running command may go on after a request to stop."""


class Worker(ABC):
    """A thread that works while there is something to do, and waits else.

    failure: what ended the thread, such as a full disk. advanced: when work that takes time was last done, on the clock
    `time.monotonic`.
    """

    def __init__(self, name: str) -> None:
        self.failure: Exception | None = None
        self.advanced = 0.0
        self._wake, self._stopping, self._draining = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def notify(self) -> None:
        """Wake the thread: there are new results."""
        self._wake.set()

    def drain(self, is_stopped: Callable[[], bool] = lambda: False, timeout: float = math.inf) -> None:
        """Wait until nothing remains to be done, nothing was done for `timeout` seconds, or a request to stop."""
        self._draining = True
        self._wake.set()
        start = time.monotonic()
        while self._thread.is_alive() and not is_stopped() and time.monotonic() < max(start, self.advanced) + timeout:
            self._thread.join(WAIT_SECONDS)

    def close(self) -> None:
        """End the thread soon."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(STOP_SECONDS)

    @abstractmethod
    def _step(self) -> bool:
        """Do the next piece of work; return False if there is none."""

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                if not self._step():
                    if self._draining:
                        return
                    self._wake.wait(IDLE_SECONDS)
        except Exception as error:  # raised again by the thread that scores
            self.failure = error


class CommandRunner(Worker):
    """Runs a command for each anomalous result, one after the other.

    The command is started directly, not by a shell. Its last argument is the absolute path of the file; its standard
    input is the result as JSON. It is recorded as done when it has ended: a process that is killed before runs it
    again for this result. A command that fails is not repeated.

    Raises:
        ConfigError: the command is empty, or there is no such program.
    """

    def __init__(self, log: Log, command: str, timeout: float) -> None:
        super().__init__("metalad-command")
        self._log, self._timeout = log, timeout
        self._words = _split(command)

    def _step(self) -> bool:
        pending = self._log.pending("command")
        if not pending:
            return False
        state = self._executed(pending[0])
        if state is not None:
            self._log.finish("command", pending[0].id, state)
        return state is not None

    def _executed(self, result: LoggedPrediction) -> str | None:
        """Run the command for a result; return `done` or why it failed, None if it was stopped."""
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as text:
            text.write(json.dumps(result.to_dict()).encode())
            text.seek(0)
            try:
                process = self._started(result, text, errors)
            except OSError as error:
                return self._failed(result, f"cannot start it: {error.strerror or error}")
            reason = self._waited(process)
            if reason is None:
                return None
            if reason == DONE:
                return DONE
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
            lines = errors.read().decode(errors="replace").strip().splitlines()
        return self._failed(result, f"{reason}: {lines[-1]}" if lines else reason)

    def _started(self, result: LoggedPrediction, text: IO[bytes], errors: IO[bytes]) -> "subprocess.Popen[bytes]":
        path = result.moved_to or result.path
        assert path is not None
        if split_page(path)[0].exists():
            path = path.absolute()
        environment = {
            "METALAD_ID": str(result.id),
            "METALAD_PATH": str(path),
            "METALAD_SCORE": repr(result.score),
            "METALAD_THRESHOLD": repr(result.threshold),
            "METALAD_OVERLAY": "" if result.overlay is None else str(result.overlay.absolute()),
        }
        return subprocess.Popen(
            [*self._words, str(path)],
            stdin=text,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **environment},
            start_new_session=True,  # not reached by Ctrl-C; its own processes end with it
        )

    def _waited(self, process: "subprocess.Popen[bytes]") -> str | None:
        deadline, is_stopping = time.monotonic() + self._timeout, False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(WAIT_SECONDS)
                return DONE if code == 0 else f"it ended with code {code}"
            if self._stopping.is_set() and not is_stopping:
                deadline, is_stopping = min(deadline, time.monotonic() + STOP_SECONDS / 2), True
            if time.monotonic() >= deadline:
                _kill(process)
                return None if is_stopping else f"it took more than {self._timeout:g} s"

    def _failed(self, result: LoggedPrediction, reason: str) -> str:
        logger.warning("the command for %s failed: %s", result.path, reason)
        return f"failed: {reason}"


def _split(command: str) -> Sequence[str]:
    try:
        words = shlex.split(command, posix=os.name == "posix")
    except ValueError as error:
        raise ConfigError(f"on_anomalous is {command!r}: {error}; close the quotation mark") from error
    if not words:
        raise ConfigError("on_anomalous is empty; give a program with its arguments")
    if shutil.which(words[0]) is None:
        raise ConfigError(f"on_anomalous: there is no program {words[0]}; give its path, and make it executable")
    return words


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
