"""Pictures that a person marked as good or as a defect, in folders that `metalad train` takes, with an index.

`DIR/MODEL/good` and `DIR/MODEL/defect` hold the files as they were sent, each named by the SHA-256 of its content.
`DIR/index.sqlite` has one row for each picture and model. The same picture is stored once; a changed label moves it.
A picture that has no row when the store is opened is moved to `DIR/MODEL/not_indexed/LABEL`: it is not trained on.
"""

import contextlib
import datetime
import hashlib
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from metalad.data.formats import format_of
from metalad.runtime.errors import ConfigError, RunError
from metalad.runtime.files import delete_temporaries, os_errors_as_run_errors, write_bytes
from metalad.runtime.progress import logger

Label = Literal["good", "defect"]
LABELS: tuple[Label, ...] = get_args(Label)
INDEX = "index.sqlite"
NOT_INDEXED = "not_indexed"
"""Folder of a model for stored pictures that have no row: the service was stopped before it wrote the row."""
REMOVED = ".removed"
"""Added to the name of a picture that is being deleted; `train` does not read such files."""
LOCK_SECONDS = 10.0
"""Time that a change of the index waits for another process that reads or writes it."""
_FOLDER_NAME = re.compile(r"[^\W_][\w.+ -]*(?<![. ])")
"""Names of models that are names of folders on every system."""
_STORED_NAME = re.compile(r"[0-9a-f]{64}\.\w+")
"""Names that the store gives to pictures; other files in its folders belong to a person, and are left there."""
_TABLE = """
CREATE TABLE IF NOT EXISTS feedback (
    model TEXT NOT NULL, sha256 TEXT NOT NULL, label TEXT NOT NULL CHECK (label IN ('good', 'defect')),
    file TEXT NOT NULL, score REAL NOT NULL, threshold REAL NOT NULL, is_anomalous INTEGER NOT NULL,
    time TEXT NOT NULL, PRIMARY KEY (model, sha256)
) STRICT
"""


@dataclass(frozen=True)
class Feedback:
    """One marked picture: a row of the index.

    file: relative to the folder of the store. score, threshold, is_anomalous: of the model, when the picture was marked
    last. time: of the last mark, in UTC, as ISO 8601.
    """

    model: str
    sha256: str
    label: Label
    file: str
    score: float
    threshold: float
    is_anomalous: bool
    time: str


class FeedbackStore:
    """The folder of the marked pictures; threads may share it."""

    def __init__(self, folder: Path, models: Iterable[str]) -> None:
        """Open the store, or create it.

        Raises:
            ConfigError: the name of a model is no name of a folder. RunError: the folder or its index cannot be used.
        """
        models = list(models)
        for name in models:
            if not _FOLDER_NAME.fullmatch(name):
                raise ConfigError(f"feedback on the model {name!r} needs a folder of that name; serve it as NAME=PATH")
        self.folder, self._index, self._lock = folder, folder / INDEX, threading.Lock()
        with os_errors_as_run_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for marked in (folder / name / label for name in models for label in LABELS):
                if marked.is_dir():
                    delete_temporaries(marked)
        with self._opened() as index:
            index.execute("PRAGMA journal_mode = WAL")
            with index:
                index.execute(_TABLE)
            with index:
                index.execute("BEGIN IMMEDIATE")
                self._finish_removals(index, models)
                self._correct_labels(index)
                self._move_out_without_row(index, models)

    def add(self, model: str, content: bytes, label: Label, score: float, threshold: float) -> Feedback:
        """Store a picture, or move it if it has another label; return its row.

        Args:
            model: a name given to the constructor. content: of the file, of a format that metalad reads.
            label: good or defect. score, threshold: of the model.

        Raises:
            RunError: a file or the row cannot be written; the files are then as before.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        kind = format_of(content[:32])
        name = f"{sha256}{kind.suffixes[0] if kind else '.img'}"
        target = self.folder / model / label / name
        row = Feedback(model, sha256, label, f"{model}/{label}/{name}", score, threshold, score > threshold, _now())
        others = [self.folder / model / other / name for other in LABELS if other != label]
        before: Path | None = target
        with self._opened() as index:
            try:
                with index:
                    # Another process that opens the store waits until the picture has its row.
                    index.execute("BEGIN IMMEDIATE")
                    before = next((path for path in (target, *others) if path.exists()), None)
                    _put(content, target, others)
                    index.execute(
                        "INSERT OR REPLACE INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        (model, sha256, label, row.file, score, threshold, int(row.is_anomalous), row.time),
                    )
            except BaseException:
                # Without its row, the picture would still be trained on.
                if before is None:
                    target.unlink(missing_ok=True)
                elif before != target and not before.exists():
                    target.replace(before)
                raise
        return row

    def remove(self, model: str, sha256: str) -> bool:
        """Delete a picture that was stored, and its row; return whether there was one.

        Its path comes from the index, never from the caller. The file is renamed before its row is deleted: after a
        crash in between, both are there again when the store is opened.

        Raises:
            RunError: the file or the row cannot be deleted; both are then as before, or the file is deleted when the
                store is opened next.
        """
        with self._opened() as index:
            key = (model, sha256)
            found = index.execute("SELECT file FROM feedback WHERE model = ? AND sha256 = ?", key).fetchone()
            if found is None:
                return False
            file = self.folder / found[0]
            removed = file.with_name(file.name + REMOVED)
            try:
                with index:
                    index.execute("BEGIN IMMEDIATE")
                    index.execute("DELETE FROM feedback WHERE model = ? AND sha256 = ?", key)
                    with contextlib.suppress(FileNotFoundError):  # a person has deleted it
                        file.replace(removed)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    removed.replace(file)
                raise
            removed.unlink(missing_ok=True)
        return True

    def rows(self) -> list[Feedback]:
        """Return all rows, the last mark last."""
        with self._opened() as index:
            rows = index.execute("SELECT * FROM feedback ORDER BY time, model, sha256").fetchall()
        return [
            Feedback(model, sha256, label, file, score, threshold, bool(is_anomalous), time)
            for model, sha256, label, file, score, threshold, is_anomalous, time in rows
        ]

    def _finish_removals(self, index: sqlite3.Connection, models: Iterable[str]) -> None:
        """Delete the pictures whose removal a crash interrupted after their row was deleted; put back the others."""
        files = {file for (file,) in index.execute("SELECT file FROM feedback")}
        for name, label in ((name, label) for name in models for label in LABELS):
            for removed in (self.folder / name / label).glob(f"*{REMOVED}"):
                file = removed.with_name(removed.name.removesuffix(REMOVED))
                if f"{name}/{label}/{file.name}" in files:
                    removed.replace(file)
                elif _STORED_NAME.fullmatch(file.name):
                    removed.unlink()

    def _correct_labels(self, index: sqlite3.Connection) -> None:
        """Follow files that were moved before a crash, or by hand, into the folder of the other label."""
        rows = index.execute("SELECT model, sha256, label, file FROM feedback").fetchall()
        for model, sha256, label, file in rows:
            (other,) = (each for each in LABELS if each != label)
            moved = f"{model}/{other}/{Path(file).name}"
            if not (self.folder / file).exists() and (self.folder / moved).exists():
                index.execute(
                    "UPDATE feedback SET label = ?, file = ? WHERE model = ? AND sha256 = ?",
                    (other, moved, model, sha256),
                )

    def _move_out_without_row(self, index: sqlite3.Connection, models: Iterable[str]) -> None:
        """Move pictures out of the folders of the labels that a stop of the service left without a row."""
        files = {file for (file,) in index.execute("SELECT file FROM feedback")}
        moved = 0
        for name, label in ((name, label) for name in models for label in LABELS):
            folder, outside = self.folder / name / label, self.folder / name / NOT_INDEXED / label
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if _STORED_NAME.fullmatch(path.name) and f"{name}/{label}/{path.name}" not in files:
                    outside.mkdir(parents=True, exist_ok=True)
                    path.replace(outside / path.name)
                    moved += 1
        if moved:
            logger.warning("feedback: moved %d stored pictures without a row in %s to %s", moved, INDEX, NOT_INDEXED)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection to the index; one thread at a time changes the store."""
        try:
            with (
                self._lock,
                os_errors_as_run_errors(self.folder),
                contextlib.closing(sqlite3.connect(self._index, timeout=LOCK_SECONDS)) as index,
            ):
                index.execute("PRAGMA synchronous = FULL")
                yield index
        except sqlite3.Error as error:
            raise RunError(f"cannot use {self._index}: {error}; check the file, or choose another folder") from error


def _put(content: bytes, target: Path, others: Iterable[Path]) -> None:
    """Write a picture to its path, or move it there from the path of another label."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        for other in others:
            with contextlib.suppress(FileNotFoundError):
                other.replace(target)
        if not target.exists():
            write_bytes(target, content)
    for other in others:
        other.unlink(missing_ok=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
