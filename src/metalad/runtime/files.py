"""Write files so that a reader sees the old content or the new, never a half.

A file is written beside its final place and renamed when it is whole: a crash, a full disk or Ctrl-C leaves
nothing half-written under the final name.
"""

import contextlib
import errno
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metalad.runtime.errors import RunError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds, delete it when not.

    Raises:
        RunError: the folder cannot be made or written, or the disk is full.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short: the name itself may be as long as may be
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what a killed process left of files that it was writing into `folder`."""
    with explained(folder):
        for stale in folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(path: Path, work: str) -> Iterator[None]:
    """Hold a lock file, so that no two processes do the same work; a killed process holds none.

    Where the system knows no locks (Windows, some network drives), nothing watches over it.

    Raises:
        RunError: another process holds it, or it cannot be made.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{path} is held by another {work}; wait for it, or choose another --out") from None
        except (ImportError, OSError):
            pass
        yield


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a `RunError` that says how to mend it."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission; choose a folder that you may write"
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return "a file stands where a folder is needed, or the reverse; choose another folder"
    return error.strerror or str(error)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content`, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused, as JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
