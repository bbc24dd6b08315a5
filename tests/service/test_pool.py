"""Admission of images, and the threads that compute them."""

import asyncio
import threading
import time

import pytest

import metalad
from metalad.service.pool import Slots, WorkerPool
from metalad.service.problems import Problem
from tests.service.clients import client_of


def refused(slots: Slots, count: int, size: int = 0) -> int:
    """Return the seconds of Retry-After."""
    with pytest.raises(Problem) as error:
        slots.take(count, size)
    assert error.value.status == 429
    return int(error.value.headers["Retry-After"])


def test_slots_are_bounded_by_images_and_bytes_and_freed() -> None:
    slots = Slots(4, 100, 2, 60.0)
    slots.take(3, 90)
    refused(slots, 2)
    refused(slots, 1, 11)
    slots.take(1, 10)
    assert (slots.taken, slots.bytes) == (4, 100)
    refused(slots, 1)
    slots.give_back(4, 100)
    slots.take(1, 1000)  # one large request alone is accepted
    refused(slots, 1, 1)


def test_slow_images_shorten_the_queue_and_lengthen_the_wait_that_clients_are_given() -> None:
    slots = Slots(1000, 100, 2, 20.0)
    for _ in range(200):
        slots.measured(10.0)
    for _ in range(5):
        slots.take(1)  # 4 images before this one take 20 s in two threads
    assert refused(slots, 1) == 25
    slots.give_back(5)
    slots.take(1)


def test_jobs_run_in_order_and_canceled_or_late_ones_do_not() -> None:
    async def run() -> list[int]:
        pool, ran, release = WorkerPool(1), list[int](), threading.Event()
        pool.start()
        soon = time.monotonic() + 60
        first = pool.submit(lambda: release.wait(10), soon)
        canceled = pool.submit(lambda: ran.append(1), soon)
        late = pool.submit(lambda: ran.append(2), time.monotonic() - 1)
        others = [pool.submit(lambda number=number: ran.append(number), soon) for number in (3, 4)]  # type: ignore[misc]
        canceled.cancel()
        await asyncio.sleep(0.05)
        assert pool.waiting == 4
        release.set()
        await asyncio.gather(first, *others)
        failed = pool.submit(lambda: 1 // 0, soon)
        with pytest.raises(ZeroDivisionError):
            await failed
        pool.close()
        assert not late.done()
        return ran

    assert asyncio.run(run()) == [3, 4]


def test_a_service_whose_threads_cannot_all_be_started_ends(
    model: metalad.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started threads that nothing ends would keep the process alive."""
    whole, started = threading.Thread.start, list[threading.Thread]()

    def start(thread: threading.Thread) -> None:
        if thread.name == "metalad-serve-1":
            raise RuntimeError("can't start new thread")
        whole(thread)
        if thread.name.startswith("metalad-serve"):
            started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr("metalad.service.application._threads", lambda registry: (2, 2))  # noqa: ARG005
    assert model.path is not None
    with pytest.raises(RuntimeError, match="can't start"), client_of(model.path):
        pass
    assert len(started) == 1
    started[0].join(30)
    assert not started[0].is_alive()
