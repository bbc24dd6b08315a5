"""Result rows: one JSON object per line and finished cell, appended such that a crash cannot damage earlier lines."""

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from metalad.runtime.errors import RunError
from metalad.runtime.files import os_errors_as_run_errors

FORMAT = 1
CHUNK = 65536


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """The result of one cell. Only `cost` depends on the clock; everything else is reproducible.

    config: all settings of the method, defaults included; `settings` are those that the cell declares.
    data: SHA-256 of training, test and all images, and their numbers; empty where only parameters were counted.
    training: the resolved training plan, precision and device, the number of epochs and the selected epoch.
    parameters: number of parameters.
    metrics: for each scoring the metrics at `model` and `original` resolution, `per_defect`, threshold and confusion.
    cost: seconds of training and of evaluation, peak memory in bytes, number of sessions, end time (UTC).
    """

    format: int = FORMAT
    suite: str
    key: str
    name: str
    method: str
    settings: Sequence[str]
    config: Mapping[str, Any]
    category: str | None
    seed: int
    protocol: str
    epochs: int | None
    data: Mapping[str, Any]
    commit: str | None
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    device: str
    threads: int
    training: Mapping[str, Any]
    parameters: int
    metrics: Mapping[str, Any]
    cost: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation."""
        return float(self.cost["train_seconds"]) + float(self.cost["evaluate_seconds"])

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ResultRow":
        """Return the row that `to_json` was called on; unknown fields are ignored.

        Raises:
            ValueError: a field is missing, or the format is newer.
        """
        known = {entry.name for entry in dataclasses.fields(cls)}
        if values.get("format") != FORMAT or not known <= set(values):
            raise ValueError("not a result row of this format")
        return cls(**{name: values[name] for name in known})


def comparable(row: ResultRow) -> dict[str, Any]:
    """Return the fields that two runs of the same cell on one machine must have in common: all but `cost`."""
    return json.loads(json.dumps({name: value for name, value in row.to_json().items() if name != "cost"}))  # type: ignore[no-any-return]


def read_rows(path: Path) -> list[ResultRow]:
    """Return the rows of a file, none if there is no file; an incomplete last line is dropped.

    Raises:
        RunError: the file cannot be read, or a complete line is not a row.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    return [_parse(path, number, line) for number, line in enumerate(content.split(b"\n")[:-1], 1)]


def latest(rows: Sequence[ResultRow]) -> dict[str, ResultRow]:
    """Return the last row of each key."""
    return {row.key: row for row in rows}


def append_row(path: Path, row: ResultRow) -> None:
    """Append a row with one write, synchronized to the disk; an incomplete last line is removed first.

    Raises:
        RunError: the row cannot be written; the file is then unchanged.
    """
    line = (json.dumps(row.to_json(), allow_nan=False) + "\n").encode()
    with os_errors_as_run_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.touch()
        with path.open("r+b", buffering=0) as file:
            end = _end_of_whole_lines(file)
            file.truncate(end)
            file.seek(end)
            if file.write(line) < len(line):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        if is_new:
            _sync_folder(path.parent)


def _parse(path: Path, number: int, line: bytes) -> ResultRow:
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("not an object")
        return ResultRow.from_json(values)
    except ValueError:
        raise RunError(
            f"{path}, line {number}: not a result row of this version of metalad; remove the line to run its cell again"
        ) from None


def _end_of_whole_lines(file: FileIO) -> int:
    content = b""
    size = file.seek(0, os.SEEK_END)
    for start in range(size - CHUNK, -CHUNK, -CHUNK):  # backwards: a line is much shorter than the file
        file.seek(max(start, 0))
        content = file.read(CHUNK + min(start, 0)) + content
        if b"\n" in content:
            return max(start, 0) + content.rindex(b"\n") + 1
    return 0


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
