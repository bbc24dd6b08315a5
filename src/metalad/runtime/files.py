"""Atomic writing of files: a reader gets the old or the new content, never a part of it.

A file is written under a temporary name in the same folder and then renamed. After a crash, a full disk or Ctrl-C no
incomplete file exists under the final name.
"""

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metalad.runtime.errors import RunError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block succeeds, else delete it.

    Raises:
        RunError: the folder cannot be created or written, the disk is full, or `path` is a named pipe or a device.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short, as `path` can have the maximum name length
    with os_errors_as_run_errors(path):
        _refuse_special(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Check that a file can be created, before the work whose result it is to hold; create nothing.

    Raises:
        RunError: the nearest existing folder above `path` cannot be written, a file is in the place of a folder, or
            `path` is a folder, a named pipe or a device.
    """
    with os_errors_as_run_errors(path):
        _refuse_special(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        for folder in path.parents:
            if folder.is_dir():
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                return
            if os.path.lexists(folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _refuse_special(path: Path) -> None:
    if path.exists() and (kind := special_kind(path)) is not None:
        raise RunError(f"cannot write {path}: it is {kind}; choose the name of a new file")


def special_kind(path: Path) -> str | None:
    """Return "a named pipe", "a socket" or "a device" for a path that is neither a file nor a folder, else None.

    Opening a named pipe waits for a process that writes into it, perhaps forever.

    Raises:
        OSError: the path does not exist, or cannot be reached.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def dead_link_target(path: Path) -> Path | None:
    """Return where a symbolic link points to if nothing is there; None for any other path."""
    return path.readlink() if path.is_symlink() and not path.exists() else None


def delete_temporaries(folder: Path) -> None:
    """Delete the temporary files that a killed process left in `folder`."""
    with os_errors_as_run_errors(folder):
        for stale in folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)


@contextlib.contextmanager
def os_errors_as_run_errors(path: Path) -> Iterator[None]:
    """Convert an `OSError` raised while writing `path` to a `RunError` with a remedy."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission; choose a folder that you may write"
    if error.errno == errno.EISDIR:
        return "it is a folder; choose the name of a file"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file exists where a folder is needed, or the reverse; choose another folder"
    return error.strerror or str(error)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content`, atomically (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not support.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
