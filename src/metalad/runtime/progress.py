"""Progress of long work: bars on a terminal, and a log line now and then elsewhere.

Code far below the public functions counts its steps with `counted` or `counter`; whether anything is shown is decided
by whoever opens `bars`. Messages go to the logger `metalad`.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

DELAY = 0.5
"""Seconds that work must last to get a bar; a bar for less would only flicker."""
LOG_SECONDS = 30.0
"""Seconds between two log lines of one counter where stderr is no terminal."""

logger = logging.getLogger("metalad")

Item = TypeVar("Item")
_shown: ContextVar[bool] = ContextVar("shown", default=False)


@contextlib.contextmanager
def bars(*, shown: bool) -> Iterator[None]:
    """Show progress on stderr for whatever is counted inside, or do not."""
    before = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(before)


class Counter:
    """Counts steps: a bar on a terminal, a log line every `LOG_SECONDS` elsewhere, nothing outside of `bars`."""

    def __init__(self, total: int | None, what: str, unit: str, initial: int = 0, *, shown: bool | None = None) -> None:
        shown = _shown.get() if shown is None else shown
        terminal = shown and sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(
            total=total, desc=what, unit=unit, initial=initial, disable=not terminal, leave=False, delay=DELAY
        )
        self._logs = shown and not terminal
        self._done, self._total, self._what, self._unit = initial, total, what, unit
        self._logged = time.monotonic()

    def update(self, steps: int = 1, **values: Any) -> None:
        """Count further steps; `values` are shown beside the bar."""
        if values:
            self._bar.set_postfix(values, refresh=False)
        self._bar.update(steps)
        self._done += steps
        if self._logs and time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            whole = "" if self._total is None else f" of {self._total}"
            shown = "".join(f", {name} {value}" for name, value in values.items())
            logger.info("%s: %d%s (%s)%s", self._what, self._done, whole, self._unit, shown)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


@contextlib.contextmanager
def counter(
    total: int | None, what: str, unit: str, initial: int = 0, *, shown: bool | None = None
) -> Iterator[Counter]:
    """Open a counter, and close it whatever happens.

    shown: True or False decides at once; by default the surrounding `bars` do.
    """
    made = Counter(total, what, unit, initial, shown=shown)
    try:
        yield made
    finally:
        made.close()


def counted(
    items: Iterable[Item], what: str, unit: str, total: int | None = None, *, shown: bool | None = None
) -> Iterator[Item]:
    """Yield the items as they are, and count them."""
    length = len(items) if total is None and isinstance(items, Sized) else total
    with counter(length, what, unit, shown=shown) as count:
        for item in items:
            yield item
            count.update()
