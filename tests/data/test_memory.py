import os
from pathlib import Path

import pytest

from metalad.data.memory import available_memory


def test_available_memory_is_at_most_the_physical_memory() -> None:
    assert 2**20 < available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_memory_limit_of_a_container_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 7000 kB\n",
        "/sys/fs/cgroup/memory.max": "5000000\n",
        "/sys/fs/cgroup/memory.current": "1500000\n",
        "/sys/fs/cgroup/memory.stat": "anon 1000000\ninactive_file 500000\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda path, **_: texts[path.as_posix()])
    assert available_memory() == 4_000_000
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert available_memory() == 7_000 * 1024


def test_available_memory_has_a_default_without_system_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path, encoding: str) -> str:
        raise FileNotFoundError(path, encoding)

    monkeypatch.setattr(Path, "read_text", missing)
    assert available_memory() > 2**20
    monkeypatch.delattr(os, "sysconf")
    assert available_memory() == 4 * 2**30
