"""A lock file, so that two processes do not write into one folder; the error states which process holds it.

The operating system releases the lock of a process that ends, however it ends. The file also records the holder, for
the error, and for file systems without locks.
"""

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from metalad.runtime.errors import RunError
from metalad.runtime.files import os_errors_as_run_errors
from metalad.runtime.progress import logger

HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN, errno.EDEADLK)
LOCKED_BYTE = 2**30
"""Position of the byte that is locked on Windows, where a locked byte cannot be read: behind the record."""


@contextlib.contextmanager
def exclusive_lock(path: Path, command: str) -> Iterator[None]:
    """Hold the lock file `path` while a command runs; it is deleted afterwards.

    A record that a killed process left does not block, unless the file system has no locks and the process ran on
    another machine, where nobody here can check it.

    Raises:
        RunError: another process holds the lock, or the file cannot be created.
    """
    file = _acquired(path, command)
    try:
        with os_errors_as_run_errors(path):
            file.seek(0)
            file.truncate()
            json.dump(_this_process(), file)
            file.flush()
        yield
    finally:
        # Deleted while it is locked; `_acquired` checks that nobody locks a deleted file. Windows needs the reverse.
        if sys.platform != "win32":
            path.unlink(missing_ok=True)
        file.close()
        if sys.platform == "win32":
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _acquired(path: Path, command: str) -> TextIO:
    while True:
        with os_errors_as_run_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        try:
            is_locked = _lock(file)
            holder = _record(file)
            if is_locked is False or (is_locked is None and _may_run(holder)):
                raise RunError(_held(path, command, holder, deletable=is_locked is None))
            if is_locked and not _is_same_file(file, path):  # the former holder deleted it before it was locked
                file.close()
                continue
        except BaseException:
            file.close()
            raise
        if holder and holder.get("host") != socket.gethostname():
            logger.warning(
                "%s did not finish its %s in %s; stop it if it still runs", _described(holder), command, path.parent
            )
        return file


def _lock(file: TextIO) -> bool | None:
    """Return whether the file is locked now: False if another process has locked it, None without file locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file.fileno(), LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in HELD else None
    return True


def _is_same_file(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def _record(file: TextIO) -> dict[str, Any]:
    """Return the record of the holder; empty if there is none, or if it cannot be read."""
    try:
        file.seek(0)
        holder = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _may_run(holder: dict[str, Any]) -> bool:
    """Return whether the recorded process may still run."""
    if not holder:
        return False
    if holder.get("host") != socket.gethostname() or sys.platform == "win32":
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError, OverflowError):
        return False
    except OSError:  # a process of another user
        return True
    return True


def _held(path: Path, command: str, holder: dict[str, Any], *, deletable: bool) -> str:
    remedy = f", or delete {path.name} there if that process has ended" if deletable else ""
    which = f" ({_described(holder)})" if holder else ""
    return f"{path} is held by another {command}{which}; wait for it, or choose another --out{remedy}"


def _described(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
