"""Move scored files into the folders ok and ng: nothing is overwritten, and a killed process finishes later."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from metalad.data.content import current_file_hash
from metalad.pipelines.watch.folder import WatchedFolder
from metalad.pipelines.watch.log import Log, Move, Stamp
from metalad.runtime.progress import logger

OK, NG = "ok", "ng"
MAX_NAMES = 10_000


class Mover:
    """Moves files of a watched folder into `target/ok` and `target/ng`, which mirror the subfolders.

    The destination is reserved with an empty file, which is then replaced: no other file is overwritten. Its path is
    stored before, so that a process that is killed can finish the move when it is started again.
    """

    def __init__(self, log: Log, folder: WatchedFolder, target: Path | None) -> None:
        self._log, self._folder, self._target = log, folder, target

    def finish_all(self) -> None:
        """Do all moves that are not finished, such as those of a killed process; without a target, give them up."""
        for move in self._log.moves():
            if move.destination is not None and self._was_moved(move, move.destination):
                continue
            if self._target is None:
                self._log.not_moved(move)
            else:
                self.move(move)

    def move(self, move: Move) -> Path | None:
        """Move a file, and return its new path; None if it stays: changed, gone, a link, or not movable.

        A file that cannot be moved stays with a warning. A file that has changed is a new one.
        """
        source = self._folder.path(move.path)
        try:
            if source.is_symlink():  # a relative one would point to another file, or to none
                logger.warning("%s is a link, which is not moved; it stays there", source)
                self._log.not_moved(move)
                return None
            if not _is_same(source, move):
                self._log.not_moved(move)
                return None
            destination = self._reserved(move)
            if not _replace(source, destination, move):
                destination.unlink(missing_ok=True)
                self._log.not_moved(move)
                return None
        except OSError as error:
            logger.warning("cannot move %s: %s; it stays there", source, error.strerror or error)
            self._log.not_moved(move)
            return None
        self._log.moved(move, destination)
        return destination

    def _reserved(self, move: Move) -> Path:
        """Return a free path, stored in the log and reserved with an empty file."""
        if move.destination is not None and _is_empty(move.destination):
            return move.destination
        assert self._target is not None
        for path in _names(self._target / move.kind / move.path):
            if os.path.lexists(path):
                continue
            self._log.move_to(move, path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                return path
        raise OSError(errno.EEXIST, f"{MAX_NAMES} files have this name")

    def _was_moved(self, move: Move, destination: Path) -> bool:
        """Finish a move whose file is complete at the destination; return False if it must be done again."""
        source = self._folder.path(move.path)
        try:
            if _is_empty(destination) or not destination.exists() or current_file_hash(destination) != move.sha256:
                return False
            if _is_same(source, move):  # copied to another file system, and not yet deleted
                source.unlink()
        except OSError:
            return False
        self._log.moved(move, destination)
        return True


def _names(path: Path) -> Iterator[Path]:
    yield path
    for number in range(2, MAX_NAMES):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def _is_same(path: Path, move: Move) -> bool:
    """Return whether a file is the one that was scored; a change of permissions, for example, does not matter."""
    stamp = Stamp.of(path)
    return stamp == move.stamp or (
        stamp is not None and stamp.size == move.stamp.size and current_file_hash(path) == move.sha256
    )


def _is_empty(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size == 0
    except OSError:
        return False


def _replace(source: Path, destination: Path, move: Move) -> bool:
    """Move a file onto the empty one that reserves its place; return False if it changes meanwhile."""
    try:
        source.replace(destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return _copy(source, destination, move)
    moved = Stamp.of(destination)
    if moved is None or (moved.size, moved.mtime_ns) == (move.stamp.size, move.stamp.mtime_ns):
        return True
    if current_file_hash(destination) == move.sha256:
        return True
    # Another version replaced the file at the last moment: it goes back, and will be scored.
    if os.path.lexists(source):
        logger.warning("%s was replaced while it was moved; %s was not scored", source, destination)
        return True
    destination.replace(source)
    return False


def _copy(source: Path, destination: Path, move: Move) -> bool:
    """Copy a file to another file system, and delete it when the copy is on the disk."""
    temporary = destination.with_name(f".{destination.name[:100]}.tmp")
    try:
        shutil.copy2(source, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if current_file_hash(temporary) != move.sha256 or not _is_same(source, move):
            return False
        temporary.replace(destination)
        _sync_folder(destination.parent)
    finally:
        temporary.unlink(missing_ok=True)
    source.unlink()
    return True


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows has no such operation
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
