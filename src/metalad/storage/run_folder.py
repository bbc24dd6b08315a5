"""The run folder: what a training run was started with, its log, and whether it may be gone on with."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metalad.runtime.errors import RunError, printable
from metalad.runtime.files import delete_temporaries, os_errors_as_run_errors, replacing, write_json


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run was started with; a resumed one must agree, or its end would not be the uninterrupted one's.

    plan: the training plan of each stage with its length in epochs; none for a method with a closed form.
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
    """A folder that one training run owns; a mute one only knows the names, as another process of the run writes."""

    def __init__(self, path: Path, *, verbose: bool, mute: bool = False) -> None:
        self.path, self.verbose, self.mute = path, verbose, mute
        self.model = path / "model.safetensors"
        self.settings = path / "run.json"
        self.checkpoint = path / "checkpoint.safetensors"

    def claim(self, *, resume: bool) -> None:
        """Make the folder, see that it can be written, and that no other run would be overwritten.

        Raises:
            RunError: it cannot be written, or holds a run and `resume` is not set.
        """
        if self.mute:
            return
        if not resume and any(file.exists() for file in (self.settings, self.model, self.checkpoint)):
            raise RunError(f"{self.path} already holds a run; go on with it by --resume, or choose another folder")
        delete_temporaries(self.path)
        with replacing(self.path / ".writable") as temporary:
            temporary.touch()
        (self.path / ".writable").unlink(missing_ok=True)

    def stored(self) -> RunSettings | None:
        """Return what the run in this folder was started with, if there is one.

        Raises:
            RunError: the record is damaged.
        """
        if self.mute or not self.settings.exists():
            return None
        try:
            return RunSettings(**json.loads(self.settings.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise RunError(f"{self.settings} is damaged; train anew in another folder") from None

    def record(self, settings: RunSettings) -> None:
        """Write down what the run is started with, or compare it with what it was started with.

        Raises:
            RunError: a resumed run differs from the one that was started.
        """
        if self.mute:
            return
        old = self.stored()
        if old is None:
            write_json(self.settings, asdict(settings))
            return
        self.compare(asdict(old), asdict(settings))

    def compare(self, started: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """See that what the run is to be resumed with is what it was started with.

        Raises:
            RunError: something differs; the text names it.
        """
        new = json.loads(json.dumps(dict(now)))
        for name in new:
            value = started.get(name)
            if value == new[name]:
                continue
            if isinstance(value, Mapping) and isinstance(new[name], Mapping):
                self.compare(value, new[name])
            else:
                raise RunError(
                    f"{self.path} was started with {name} {_short(value)}, now it is {_short(new[name])}; "
                    "resume it as it was, or choose another folder"
                )

    def note(self, line: str) -> None:
        """Append a line to the log, and show it where asked."""
        if self.mute:
            return
        log = self.path / "train.log"
        with os_errors_as_run_errors(log), log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(line)}\n")
        if self.verbose:
            print(printable(line), file=sys.stderr)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
