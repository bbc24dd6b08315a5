"""Keep the memory of a long-running process small: few memory pools, and free pages returned to the system."""

import contextlib
import ctypes
from functools import lru_cache
from typing import Any

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
ARENAS = 2


def limit_arenas() -> bool:
    """Let threads share a few memory pools, where the allocator has one a thread (glibc); return whether it does.

    Blocks that one thread frees are otherwise not used by the others: images of several sizes then fill each pool. This
    must be called before threads are started.
    """
    function = _function("mallopt")
    return function is not None and bool(function(M_ARENA_MAX, ARENAS))


def trim() -> None:
    """Let the allocator of the C library return its free pages, where it can (glibc).

    It keeps the blocks of images that were freed, which fragment: without this, the memory of a service that gets
    images of many sizes grows for a long time. It takes some milliseconds.
    """
    function = _function("malloc_trim")
    if function is not None:
        function(0)


@lru_cache
def _function(name: str) -> Any:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows needs a name
        return getattr(ctypes.CDLL(None), name)
    return None
