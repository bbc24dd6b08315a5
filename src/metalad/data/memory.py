"""Available memory, and arrays that are stored on disk if they do not fit into memory."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from metalad.runtime.files import os_errors_as_run_errors

_DEFAULT = 4 * 2**30


def available_memory() -> int:
    """Return the bytes that can be used without swapping, within the limit of a container; 4 GiB if unknown."""
    known = [amount for amount in (_system_memory(), _container_memory()) if amount is not None]
    return min(known, default=_DEFAULT)


def _system_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None
    except OSError:  # not Linux
        return _physical_memory()


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _container_memory() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        used -= int(stat["inactive_file"])  # the file cache is freed when memory is needed
        return None if limit == "max" else max(int(limit) - used, 0)
    except (OSError, ValueError, KeyError):
        return None


def allocate(
    shape: tuple[int, int, int, int], memory_limit: int, cache: Path | None
) -> UInt8[np.ndarray, "n height width channels"]:
    """Allocate an array for pixels: in memory up to `memory_limit` bytes, else as a memory-mapped temporary file.

    The file is created in `cache` (by default, the folder for temporary files of the system) and is deleted when the
    program ends; except on Windows, also if the program is killed.

    Raises:
        RunError: the temporary file cannot be written or the disk is full.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if size <= memory_limit:
        return np.empty(shape, np.uint8)
    parent = cache if cache is not None else Path(tempfile.gettempdir())
    with os_errors_as_run_errors(parent / "metalad-pixels"):
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="metalad-", dir=parent))
        try:
            return _map_file(folder / "pixels", shape, size)
        finally:
            _remove(folder)


def _map_file(path: Path, shape: tuple[int, int, int, int], size: int) -> UInt8[np.ndarray, "n h w c"]:
    with path.open("w+b") as file:
        # Writing to a mapped file on a full disk kills the process, so the space is reserved first.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, np.uint8, "r+", shape=shape)


def _remove(folder: Path) -> None:
    """Delete the folder now, which does not affect the mapping; on Windows, which forbids this, at program exit."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
