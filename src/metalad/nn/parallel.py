"""Compute independent parts of one image in several threads; the results do not depend on the number of threads.

A matrix product in several threads adds in another order than in one, which changes the last digits of a score. Parts
that are each computed by one thread do not.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS: ContextVar[int] = ContextVar("threads of parts", default=1)


@contextmanager
def threads_for_parts(count: int) -> Iterator[None]:
    """Let `each_part` use this many threads in calls from this thread."""
    token = _THREADS.set(count)
    try:
        yield
    finally:
        _THREADS.reset(token)


def each_part(function: Callable[[Item], Result], parts: Iterable[Item]) -> Iterator[Result]:
    """Yield what `function` returns for each part, in order.

    Each part is computed with as many threads of torch, and in the same mode of gradients, as by the calling thread.
    """
    parts = list(parts)
    threads = min(_THREADS.get(), len(parts))
    if threads < 2:
        yield from map(function, parts)
        return
    inference, gradient = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def computed(part: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradient):
            return function(part)

    with ThreadPoolExecutor(threads, "metalad-part", torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        yield from pool.map(computed, parts)
