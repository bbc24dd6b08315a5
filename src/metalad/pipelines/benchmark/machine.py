"""The machine, the commit and the package versions that a result depends on, and the peak memory of a process."""

import contextlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import metalad

PACKAGES = ("metalad", "torch", "numpy", "scipy", "pillow")
"""Packages whose versions a row records."""
CODE = ("src", "pyproject.toml")
"""Paths whose changes make a checkout dirty; changed rows and tables do not."""


def machine(gpu: str | None) -> dict[str, Any]:
    """Return the processor's name, how many cores are usable, the memory in GiB, and the GPU's name."""
    return {"cpu": _processor(), "cores": _cores(), "memory_gib": _memory_gib(), "gpu": gpu}


def commit() -> str | None:
    """Return the commit of the checkout that contains this package, `-dirty` if its code was changed; None: unknown."""
    package = Path(metalad.__file__).parent
    # An installed package may be inside the checkout of another project.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    top = _git(package, "rev-parse", "--show-toplevel")
    head = _git(package, "rev-parse", "HEAD")
    if not top or not head:
        return None
    changed = _git(Path(top), "status", "--porcelain", "--", *CODE)
    return f"{head}-dirty" if changed else head


def reset_peak_memory() -> None:
    """Reset the peak memory of the process, where the system supports it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int | None:
    """Return the peak memory of the process in bytes, since `reset_peak_memory` or since its start."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
    except OSError:
        return _peak_since_start()


def _peak_since_start() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
