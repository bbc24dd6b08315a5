"""Compute independent parts of one image in several threads; the results do not depend on the number of threads.

A matrix product in several threads adds in another order than in one, which changes the last digits of a score. Parts
that are each computed by one thread do not.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS: ContextVar[int] = ContextVar("threads of parts", default=1)
_LOCK = threading.Lock()
_callers = 0


@contextmanager
def threads_for_parts(count: int) -> Iterator[None]:
    """Let `each_part` use this many threads in calls from this thread, divided among all threads in such a context."""
    global _callers
    with _LOCK:
        _callers += 1
    token = _THREADS.set(count)
    try:
        yield
    finally:
        _THREADS.reset(token)
        with _LOCK:
            _callers -= 1


def each_part(function: Callable[[Item], Result], parts: Sequence[Item]) -> Iterator[Result]:
    """Return an iterator over what `function` returns for each part, in order.

    Each part is computed with as many threads of torch, and in the same mode of gradients, as by the calling thread.
    """
    if torch.compiler.is_compiling():  # a context variable cannot be traced
        return map(function, parts)
    threads = min(_THREADS.get() // max(1, _callers), len(parts))
    return map(function, parts) if threads < 2 else _in_threads(function, parts, threads)


def _in_threads(function: Callable[[Item], Result], parts: Sequence[Item], threads: int) -> Iterator[Result]:
    inference, gradient = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def computed(part: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradient):
            return function(part)

    with ThreadPoolExecutor(threads, "metalad-part", _prepare_thread, (torch.get_num_threads(),)) as pool:
        try:
            results = pool.map(computed, parts)
        except RuntimeError:  # the interpreter ends, and starts no more threads
            results = map(function, parts)
        yield from results


def _prepare_thread(threads_of_torch: int) -> None:
    torch.set_num_threads(threads_of_torch)
    _THREADS.set(1)  # a new thread may inherit the context
