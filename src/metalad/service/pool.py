"""A bounded queue of images in front of worker threads, and the results that they compute."""

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from metalad.service.problems import Problem

logger = logging.getLogger("metalad")


class Job:
    """A call that waits for a worker thread; `future` gets its result.

    deadline: on the clock `time.monotonic`; a job that did not start before is not computed.
    """

    def __init__(self, call: Callable[[], Any], deadline: float) -> None:
        self.call, self.deadline = call, deadline
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Set the result or the error from a worker thread, unless the request has ended."""

        def set_it() -> None:
            if self.future.done():
                return
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(set_it)
        except RuntimeError:  # the loop is closed: the service was stopped by force
            logger.debug("an answer came after the end of the service")


class Slots:
    """Counts the images in the service, in upload, waiting or computed, and the bytes of their requests.

    limit: of images. max_bytes: of all requests together; one request alone may have more. workers: images computed
    at once. max_wait: seconds; where images take long, fewer are accepted, so that none waits longer. The event loop
    alone takes and frees slots.
    """

    def __init__(self, limit: int, max_bytes: int, workers: int, max_wait: float) -> None:
        self.limit, self.max_bytes, self.workers, self.max_wait = limit, max_bytes, workers, max_wait
        self.taken = self.bytes = 0
        self._seconds = 0.1  # a moving average of the time of one image

    def take(self, count: int, size: int = 0) -> None:
        """Take slots for images, and memory for a body.

        Raises:
            Problem: fewer slots or bytes are free, or the wait would be too long (429, with Retry-After).
        """
        wait = self.taken * self._seconds / self.workers
        is_full = self.taken + count > self.limit or (self.bytes and self.bytes + size > self.max_bytes)
        if is_full or (self.taken and wait > self.max_wait):
            seconds = max(1, math.ceil(wait))
            full = f"the queue is full with {self.taken} images; send the request again in {seconds} s"
            raise Problem(429, full, headers={"Retry-After": str(seconds)})
        self.taken += count
        self.bytes += size

    def give_back(self, count: int, size: int = 0) -> None:
        """Free slots and memory."""
        self.taken -= count
        self.bytes -= size

    def measured(self, seconds: float) -> None:
        """Take the time of one image into account for Retry-After."""
        self._seconds += 0.1 * (seconds - self._seconds)


class WorkerPool:
    """Threads that run jobs in the order in which they were submitted."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the threads; the process cannot end before `close`, also if one of them cannot be started."""
        names = (f"metalad-serve-{number}" for number in range(self.workers))
        # No daemons: a thread that returns from onnxruntime, OpenVINO or torch while Python ends aborts the process.
        self._threads = [threading.Thread(target=self._work, name=name) for name in names]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """The number of jobs that no worker has begun."""
        return self._jobs.qsize()

    def submit(self, call: Callable[[], Any], deadline: float) -> "asyncio.Future[Any]":
        """Queue a call, and return what will hold its result; cancel it to drop the call if it has not begun."""
        job = Job(call, deadline)
        self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Let the threads end after the jobs that are queued."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            _run(job)
            del job  # an idle worker must not hold an image


def _run(job: Job) -> None:
    if job.future.done() or time.monotonic() > job.deadline:
        return  # the client closed the connection, or was answered with 504
    try:
        result, error = job.call(), None
    except BaseException as raised:
        result, error = None, raised
    job.settle(result, error)
