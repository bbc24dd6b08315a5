"""Settings of the C library's allocator."""

import platform
import subprocess
import sys

import pytest

from metalad.service.memory import limit_arenas, trim

THREADS = """
import re, threading
from ctypes import CDLL
from metalad.service.memory import limit_arenas
if {limited}:
    assert limit_arenas()
together = threading.Barrier(8)
def work():
    block = bytearray(1000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
CDLL(None).malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of another C library")
@pytest.mark.parametrize("limited", [True, False])
def test_many_threads_share_few_memory_pools(limited: bool) -> None:
    command = [sys.executable, "-c", THREADS.format(limited=limited)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pools = done.stderr.count("Arena ")
    assert pools <= 2 if limited else pools > 2


def test_without_glibc_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalad.service.memory._function", lambda _: None)
    assert not limit_arenas()
    trim()
