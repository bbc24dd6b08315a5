"""Bars for long work far below the verbs: drawn where whoever began it wants them, and nowhere else."""

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

DELAY = 0.5
"""Seconds that work must last to get a bar; what is done sooner would only flicker."""

Item = TypeVar("Item")
_drawn: ContextVar[bool] = ContextVar("drawn", default=False)


@contextlib.contextmanager
def bars(*, drawn: bool) -> Iterator[None]:
    """Draw a bar on stderr for whatever is `counted` inside, or do not."""
    before = _drawn.set(drawn)
    try:
        yield
    finally:
        _drawn.reset(before)


def counted(items: Iterable[Item], what: str, unit: str) -> Iterable[Item]:
    """Return the items as they are; while they are gone through, a bar says how far, if `bars` are drawn."""
    counting: Iterable[Item] = tqdm(items, what, unit=unit, disable=not _drawn.get(), leave=False, delay=DELAY)
    return counting
