"""Return unused memory to the system."""

import contextlib
import ctypes
from functools import lru_cache
from typing import Any


def trim() -> None:
    """Let the allocator of the C library return its free pages, where it can (glibc).

    It keeps the blocks of images that were freed, which fragment: without this, the memory of a service that gets
    images of many sizes grows for a long time. It takes some milliseconds.
    """
    function = _malloc_trim()
    if function is not None:
        function(0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Any:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows needs a name
        return ctypes.CDLL(None).malloc_trim
    return None
