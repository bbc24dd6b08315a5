"""The log of `watch`: an SQLite database with all results, what remains to be done for them, and the known files.

One transaction stores the results of a file and marks the file as known. That is why a process that is killed at any
time neither loses an image nor scores it twice. `PRAGMA synchronous=FULL` writes each transaction to the disk, so that
this holds for a power failure, too.
"""

import contextlib
import json
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from metalad.results.logged import LoggedPrediction
from metalad.results.prediction import SavedPrediction
from metalad.runtime.errors import RunError

NAME = "results.sqlite"
VERSION = 1
PENDING, DONE = "pending", "done"
Outbox = Literal["command", "mqtt"]
"""A column of the table `results`: NULL for nothing to do, `pending`, `done`, or why it failed."""
SKIPPED = ""
"""The hash of the content of a file that is known without results."""
BUSY_SECONDS = 30.0
"""How long a transaction waits for another program that has locked the database."""

SCHEMA = """
CREATE TABLE results (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    path NOT NULL,
    file,
    sha256 TEXT,
    model TEXT,
    score REAL,
    threshold REAL NOT NULL,
    is_anomalous INTEGER,
    error TEXT,
    result TEXT NOT NULL,
    moved_to,
    command TEXT,
    mqtt TEXT
);
CREATE INDEX results_file ON results (file, sha256);
CREATE INDEX results_command ON results (id) WHERE command = 'pending';
CREATE INDEX results_mqtt ON results (id) WHERE mqtt = 'pending';
CREATE TABLE files (
    path PRIMARY KEY,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    sha256 TEXT,
    move TEXT,
    destination
) WITHOUT ROWID;
CREATE INDEX files_content ON files (sha256);
CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_READY = """(moved_to IS NOT NULL OR NOT EXISTS (
    SELECT 1 FROM files WHERE files.path = results.file AND files.sha256 = results.sha256 AND move IS NOT NULL))"""
"""A result's command and message wait until its file has been moved."""


@dataclass(frozen=True)
class Stamp:
    """What the file system records about a file; a change of the content changes it.

    The number of a file (inode) is not compared, because some network drives do not keep it.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int = field(compare=False)

    @classmethod
    def of(cls, path: Path) -> "Stamp | None":
        """Return the stamp of a regular file; None if there is none, or if it cannot be reached now."""
        try:
            status = path.stat()
        except OSError:
            return None
        # SQLite's integers have a sign; some file systems use all 64 bits for the number of a file.
        inode = status.st_ino & (2**63 - 1)
        is_file = stat.S_ISREG(status.st_mode)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode) if is_file else None

    @property
    def values(self) -> tuple[int, int, int, int]:
        """The four numbers, as columns."""
        return self.size, self.mtime_ns, self.ctime_ns, self.inode


@dataclass(frozen=True)
class Move:
    """A move that is to be done: `path`, relative to the watched folder, goes to the folder `kind`."""

    path: str
    stamp: Stamp
    sha256: str
    kind: str
    destination: Path | None


class Log:
    """The database; threads may share it.

    read_only: only results are read; the database must exist.

    Raises:
        RunError: of every method: the database cannot be written or is damaged.
    """

    def __init__(
        self, file: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC), *, read_only: bool = False
    ) -> None:
        self._file, self._clock = file, clock
        self._lock = threading.RLock()
        with self._errors():
            if not read_only:
                file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                f"{file.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            self._database.row_factory = sqlite3.Row
            if read_only:
                return
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._create()

    def _create(self) -> None:
        with self._transaction():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in SCHEMA.split(";\n"):
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA user_version={VERSION}")
            elif version != VERSION:
                raise RunError(f"{self._file} was written by a newer metalad; install that version")

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    # Known files

    def stamp(self, path: str) -> tuple[Stamp, str | None] | None:
        """Return the stamp of a known file, and the hash of its content, if it was scored."""
        row = self._one("SELECT * FROM files WHERE path = ?", _stored(path))
        return None if row is None else (_stamp(row), row["sha256"])

    def touched(self, path: str, stamp: Stamp) -> None:
        """Store the new stamp of a known file whose content is the same."""
        with self._transaction():
            self._database.execute(
                "UPDATE files SET size = ?, mtime_ns = ?, ctime_ns = ?, inode = ? WHERE path = ?",
                (*stamp.values, _stored(path)),
            )

    def renamed(self, path: str, stamp: Stamp, sha256: str, exists: Callable[[str], bool]) -> bool:
        """Return whether a file is a known one under another name, and store its new name.

        A renamed file has the same content, number (inode) and time of modification, and its old name is gone. The
        content of skipped files is not known.
        """
        with self._transaction():
            rows = self._database.execute(
                "SELECT path FROM files WHERE sha256 IN (?, ?) AND size = ? AND mtime_ns = ? AND inode = ?",
                (sha256, SKIPPED, stamp.size, stamp.mtime_ns, stamp.inode),
            ).fetchall()
            old = next((row["path"] for row in rows if not exists(_restored(row["path"]))), None)
            if old is None:
                return False
            self._database.execute("DELETE FROM files WHERE path = ?", (_stored(path),))
            self._database.execute(
                "UPDATE files SET path = ?, ctime_ns = ? WHERE path = ?", (_stored(path), stamp.ctime_ns, old)
            )
        return True

    def skip(self, files: Iterable[tuple[str, Stamp]]) -> None:
        """Mark files as known without results."""
        with self._transaction():
            self._database.executemany(
                "INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?, ?, ?, NULL, NULL)",
                ((_stored(path), *stamp.values, SKIPPED) for path, stamp in files),
            )

    # Results

    def add(
        self,
        file: tuple[str, Stamp] | None,
        sha256: str | None,
        predictions: Sequence[SavedPrediction],
        *,
        model: str | None,
        move: str | None = None,
        moved_to: Sequence[Path | None] = (),
        outboxes: Sequence[Outbox] = (),
    ) -> list[LoggedPrediction]:
        """Store the results of a file or frame, mark the file as known, and return the results with their numbers.

        move: the folder that the file is to be moved to. moved_to: where the frame of each result was written.
        outboxes: what else is to be done; commands are run for anomalous images only.
        """
        time = self._clock().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        logged = []
        with self._transaction():
            for saved, written in zip_longest(predictions, moved_to):
                values = {
                    "time": time,
                    "path": _stored(str(saved.path)),
                    "file": None if file is None else _stored(file[0]),
                    "sha256": sha256,
                    "model": model,
                    "score": saved.score,
                    "threshold": saved.threshold,
                    "is_anomalous": saved.is_anomalous,
                    "error": saved.error,
                    "result": json.dumps(saved.to_dict(), allow_nan=False),
                    "moved_to": None if written is None else _stored(str(written)),
                    "command": PENDING if "command" in outboxes and saved.is_anomalous else None,
                    "mqtt": PENDING if "mqtt" in outboxes else None,
                }
                inserted = self._database.execute(
                    f"INSERT INTO results ({', '.join(values)}) VALUES (:{', :'.join(values)})", values
                )
                logged.append(LoggedPrediction.of(saved, inserted.lastrowid or 0, time, sha256, written))
            if file is not None:
                self._database.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
                    (_stored(file[0]), *file[1].values, sha256, move),
                )
        return logged

    def results(self, first: int = 0) -> Iterator[LoggedPrediction]:
        """Yield the results from a number on, in order; memory does not grow with their number."""
        while rows := self._all("SELECT * FROM results WHERE id >= ? ORDER BY id LIMIT 1000", first):
            yield from map(_logged, rows)
            first = rows[-1]["id"] + 1

    def paths_of(self, sha256: str) -> set[str]:
        """Return the paths of the results for a content, such as the frames of a video."""
        rows = self._all("SELECT path FROM results WHERE sha256 = ? AND file IS NULL", sha256)
        return {_restored(row["path"]) for row in rows}

    # Moves

    def moves(self) -> list[Move]:
        """Return the moves that are not finished."""
        rows = self._all("SELECT * FROM files WHERE move IS NOT NULL")
        return [
            Move(_restored(row["path"]), _stamp(row), row["sha256"], row["move"], _path(row["destination"]))
            for row in rows
        ]

    def move_to(self, move: Move, destination: Path) -> None:
        """Store where a file will be moved, before it is moved."""
        with self._transaction():
            self._database.execute(
                "UPDATE files SET destination = ? WHERE path = ? AND sha256 = ?",
                (_stored(str(destination)), _stored(move.path), move.sha256),
            )

    def moved(self, move: Move, destination: Path) -> None:
        """Store that a file was moved; a new file with its name is not known."""
        with self._transaction():
            key = (_stored(move.path), move.sha256)
            self._database.execute("DELETE FROM files WHERE path = ? AND sha256 = ?", key)
            self._database.execute(
                "UPDATE results SET moved_to = ? WHERE file = ? AND sha256 = ? AND moved_to IS NULL",
                (_stored(str(destination)), *key),
            )

    def not_moved(self, move: Move) -> None:
        """Store that a file stays where it is."""
        with self._transaction():
            self._database.execute(
                "UPDATE files SET move = NULL, destination = NULL WHERE path = ? AND sha256 = ?",
                (_stored(move.path), move.sha256),
            )

    # Commands and messages

    def pending(self, outbox: Outbox, after: int = 0, limit: int = 1) -> list[LoggedPrediction]:
        """Return the first results, with numbers above `after`, for which something remains to be done."""
        rows = self._all(
            f"SELECT * FROM results WHERE {outbox} = 'pending' AND id > ? AND {_READY} ORDER BY id LIMIT {limit:d}",
            after,
        )
        return [_logged(row) for row in rows]

    def count_pending(self, outbox: Outbox) -> int:
        """Return the number of results for which something remains to be done."""
        row = self._one(f"SELECT count(*) AS number FROM results WHERE {outbox} = 'pending'")
        assert row is not None
        return int(row["number"])

    def finish(self, outbox: Outbox, id: int, state: str = DONE) -> None:
        """Store that a command was run, or that a message was received, or why not."""
        with self._transaction():
            self._database.execute(f"UPDATE results SET {outbox} = ? WHERE id = ?", (state, id))

    # Whether the last process ended regularly

    @property
    def is_running(self) -> bool:
        """Whether a process has begun, and has not ended regularly."""
        return self._one("SELECT value FROM state WHERE name = 'running'") is not None

    def begin(self) -> None:
        """Store that a process has begun."""
        with self._transaction():
            self._database.execute("INSERT OR REPLACE INTO state VALUES ('running', ?)", (str(os.getpid()),))

    def end(self) -> None:
        """Store that the process ends regularly."""
        with self._transaction():
            self._database.execute("DELETE FROM state WHERE name = 'running'")

    # Access

    def _one(self, statement: str, *values: Any) -> sqlite3.Row | None:
        return next(iter(self._all(statement, *values)), None)

    def _all(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock, self._errors():
            return self._database.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # after a full disk, SQLite has done it already
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(
                f"cannot use the log {self._file}: {error}; free some space, or choose another --out on a local disk"
            ) from error
        except OSError as error:
            raise RunError(f"cannot write {self._file}: {error.strerror or error}; choose another --out") from error


def _stored(path: str) -> str | bytes:
    """Return a path as SQLite stores it: as text, or as bytes if it is not valid Unicode."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def _restored(value: str | bytes) -> str:
    return os.fsdecode(value)


def _path(value: str | bytes | None) -> Path | None:
    return None if value is None else Path(_restored(value))


def _stamp(row: sqlite3.Row) -> Stamp:
    return Stamp(row["size"], row["mtime_ns"], row["ctime_ns"], row["inode"])


def _logged(row: sqlite3.Row) -> LoggedPrediction:
    return LoggedPrediction.from_row({**dict(row), "moved_to": _path(row["moved_to"])})
