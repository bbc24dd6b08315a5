"""Which files that have arrived are completely written: those that do not change for a while, and can be decoded."""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from metalad.pipelines.watch.log import Stamp

FIRST_RETRY = 1.0
"""Seconds until a file that could not be decoded is tried again; each further wait is twice as long."""

IN_WORK_WAIT = 0.2


class ReadyFile(NamedTuple):
    """A file that is to be decoded. is_last: if it cannot be decoded now, it is recorded as unreadable."""

    path: str
    stamp: Stamp
    is_last: bool


@dataclass
class _Arrival:
    stamp: Stamp
    since: float
    due: float
    wait: float = FIRST_RETRY


class Arrivals:
    """The files that have arrived and are not yet scored. Times are seconds of any clock that never goes back.

    Args:
        settle: seconds for which size and times of a file must not change before it is decoded.
        patience: seconds for which an unchanged file that cannot be decoded is tried again.
    """

    def __init__(self, settle: float, patience: float) -> None:
        self._settle, self._patience = settle, patience
        self._files: dict[str, _Arrival] = {}
        self._queue: list[tuple[float, int, str]] = []
        self._order = 0
        self._in_work: set[str] = set()

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def observe(self, path: str, stamp: Stamp, now: float) -> None:
        """Record a file; one whose stamp has changed begins to settle again."""
        known = self._files.get(path)
        if known is None or known.stamp != stamp:
            self._files[path] = _Arrival(stamp, now, now + self._settle)
            self._push(path)

    def ready(self, now: float, stamp_of: Callable[[str], Stamp | None], limit: int) -> Iterator[ReadyFile]:
        """Yield at most `limit` files that have settled, in the order of arrival; each must be finished or rejected.

        stamp_of: returns the stamp of a file now; None if it is gone, which is forgotten.
        """
        count = 0
        while count < limit and self._queue and self._queue[0][0] <= now:
            due, _, path = heapq.heappop(self._queue)
            arrival = self._files.get(path)
            if arrival is None or arrival.due != due:  # a later entry of the queue counts
                continue
            stamp = stamp_of(path)
            if path in self._in_work:  # an earlier version
                arrival.due = now + IN_WORK_WAIT
                self._push(path)
            elif stamp is None:
                del self._files[path]
            elif stamp != arrival.stamp:
                self.observe(path, stamp, now)
            else:
                count += 1
                self._in_work.add(path)
                yield ReadyFile(path, stamp, now - arrival.since >= self._patience)

    def reject(self, path: str, stamp: Stamp, now: float) -> None:
        """Record that a file could not be decoded; it is tried again."""
        self._in_work.discard(path)
        arrival = self._files.get(path)
        if arrival is not None and arrival.stamp == stamp:
            last = max(arrival.since + self._patience, now)
            arrival.due = min(now + arrival.wait, last)
            arrival.wait *= 2
            self._push(path)

    def finish(self, path: str, stamp: Stamp) -> None:
        """Forget a file that was scored; not if another version of it has arrived."""
        self._in_work.discard(path)
        arrival = self._files.get(path)
        if arrival is not None and arrival.stamp == stamp:
            del self._files[path]

    def next_due(self) -> float | None:
        """Return the earliest time at which a file may be ready; None without files."""
        while self._queue:
            due, _, path = self._queue[0]
            arrival = self._files.get(path)
            if arrival is not None and arrival.due == due:
                return due
            heapq.heappop(self._queue)
        return None

    def _push(self, path: str) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self._files[path].due, self._order, path))
