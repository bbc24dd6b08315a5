"""The run folder: the settings that a training run was started with, its log, and whether it can be resumed."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metalad.runtime.errors import RunError, printable
from metalad.runtime.files import delete_temporaries, os_errors_as_run_errors, replacing, write_json
from metalad.runtime.lock import exclusive_lock
from metalad.storage.migration import complete_settings, migrate_settings

logger = logging.getLogger("metalad")

SETTINGS_NAME = "run.json"
"""The settings of a run, which its folder has from the start."""
OPTIONS: Mapping[str, str] = {"max_epochs": "epochs"}
"""Names of options that are stored under another name."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings that a run was started with; a resumed run must have the same, to end in the same bits.

    plan: the training plan of each stage with its length in epochs; empty for a method with a closed form.
    """

    method: str
    config: Mapping[str, Any]
    protocol: str
    plan: Mapping[str, Any]
    seed: int
    false_alarms: float
    training_hash: str
    device: str
    precision: str
    threads: int
    processes: int = 1


class RunFolder:
    """A folder that one training run owns.

    mute: nothing is written or logged, because another process of the run does that.
    """

    def __init__(self, path: Path, *, mute: bool = False) -> None:
        self.path, self.mute = path, mute
        self.model = path / "model.safetensors"
        self.settings = path / SETTINGS_NAME
        self.checkpoint = path / "checkpoint.safetensors"
        self.history = path / "history.jsonl"
        self._is_new = False

    @contextlib.contextmanager
    def claimed(self, *, resume: bool) -> Iterator[None]:
        """Create the folder and lock it for one training; check that no other run would be overwritten.

        If the training raises before its first checkpoint, there is nothing to resume: its record is deleted, so that
        the folder can be used again with other settings.

        Raises:
            RunError: it cannot be written, another process trains in it, or it holds a run and `resume` is not set.
        """
        if self.mute:
            yield
            return
        with exclusive_lock(self.path / ".lock", "train"):
            self._claim(resume=resume)
            try:
                yield
            except Exception:
                if self._is_new and not self._has_run:
                    self._forget()
                raise

    @property
    def _has_run(self) -> bool:
        """Whether the folder holds more of a run than its settings and its log."""
        return self.model.exists() or self.checkpoint.exists()

    def _claim(self, *, resume: bool) -> None:
        if not resume:
            if self._has_run:
                raise RunError(f"{self.path} already holds a run; continue it with --resume, or choose another folder")
            if self.stored() is not None:  # refused or killed before its first checkpoint
                self._forget()
        delete_temporaries(self.path)
        with replacing(self.path / ".writable") as temporary:
            temporary.touch()
        (self.path / ".writable").unlink(missing_ok=True)

    def _forget(self) -> None:
        with os_errors_as_run_errors(self.path):
            self.settings.unlink(missing_ok=True)
            self.history.unlink(missing_ok=True)

    def stored(self) -> RunSettings | None:
        """Return the settings of the run in this folder, if there is one.

        Raises:
            RunError: the record is damaged.
        """
        if self.mute or not self.settings.exists():
            return None
        try:
            values = json.loads(self.settings.read_text(encoding="utf-8"))
            config = migrate_settings(values["method"], values["config"])
            values["config"] = complete_settings(values["method"], config)
            return RunSettings(**values)
        except (ValueError, TypeError, KeyError):
            raise RunError(f"{self.settings} is damaged; train again in another folder") from None

    def record(self, settings: RunSettings) -> None:
        """Store the settings of the run, or compare them with the stored ones if it is resumed.

        Raises:
            RunError: a resumed run differs from the one that was started.
        """
        if self.mute:
            return
        old = self.stored()
        if old is None:
            self._is_new = True
            write_json(self.settings, asdict(settings))
            return
        require_same(self.path, asdict(old), asdict(settings))

    def note(self, line: str, level: int = logging.INFO) -> None:
        """Append a line to the log file, and pass it to the logger `metalad`, at a level of `logging`."""
        if self.mute:
            return
        log = self.path / "train.log"
        with os_errors_as_run_errors(log), log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(line)}\n")
        logger.log(level, "%s", printable(line))


def require_same(
    folder: Path,
    started: Mapping[str, Any],
    now: Mapping[str, Any],
    remedy: str = "resume it as it was, or choose another folder",
) -> None:
    """Check that work in a folder is continued with the settings that it was started with.

    Raises:
        RunError: something differs; the text names it.
    """
    new = json.loads(json.dumps(dict(now)))
    for name in new:
        value = started.get(name)
        if value == new[name]:
            continue
        if isinstance(value, Mapping) and isinstance(new[name], Mapping):
            require_same(folder, value, new[name], remedy)
        else:
            option = OPTIONS.get(name, name)
            raise RunError(
                f"{folder} was started with {option} {_short(value)}, now it is {_short(new[name])}; {remedy}"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
