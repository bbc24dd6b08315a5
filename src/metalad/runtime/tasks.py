"""Many tasks at once: in processes of this machine, or on Ray. Tasks and answers are JSON objects. No torch here.

`python -m metalad.runtime.tasks MODULE:FUNCTION` is such a process: it reads a task a line from stdin, prints an answer a
line, and ends when stdin does: at its leisure when it is idle, as by Ctrl-C when it is at work.
"""

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from metalad.runtime.errors import ConfigError

LOCAL = "local"
WORKER = "METALAD_WORKER"
"""The environment variable that tells a process its number among those of this machine: it chooses the GPU by it."""
GRACE = 10.0
"""Seconds that a process has to end what it is writing."""

Task = Mapping[str, Any]


@dataclass(frozen=True)
class Lost:
    """Why a task has no answer: its process was killed, or Ray could not do it."""

    reason: str


@dataclass(frozen=True)
class Needs:
    """What Ray is to set aside for a task: processors, memory in GiB; `gpus` None takes one if there is any."""

    threads: int = 1
    memory_gib: float = 3.0
    gpus: float | None = None


Answers = Generator[tuple[int, dict[str, Any] | Lost], None, None]
"""Pairs of a task's place among the tasks and its answer, as they come."""


def in_processes(function: str, tasks: Iterable[Task], workers: int, *, fresh: bool) -> Answers:
    """Do so many tasks at once, each in a process: one that is killed harms no other.

    Closing the generator ends the processes: each is interrupted, finishes the file that it is writing, and goes.

    Args:
        function: `module:name` of a function from a task to its answer.
        tasks: taken as they are needed, at most two a process ahead.
        workers: processes at once.
        fresh: give each task a process of its own, so that memory and threads are its own.
    """
    processes, pool = _Processes(function, workers, fresh), ThreadPoolExecutor(workers)
    try:
        yield from _pumped(
            tasks,
            2 * workers,
            lambda task: pool.submit(processes.ask, task),
            lambda futures: wait(futures, return_when=FIRST_COMPLETED).done,
            lambda future: future.result(),
        )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        processes.close()
        pool.shutdown()


def _pumped(
    tasks: Iterable[Task],
    limit: int,
    submit: Callable[[Task], Any],
    ready: Callable[[list[Any]], Iterable[Any]],
    fetch: Callable[[Any], dict[str, Any] | Lost],
    running: dict[Any, int] | None = None,
) -> Answers:
    waiting = enumerate(tasks)
    running = {} if running is None else running
    while True:
        while len(running) < limit and (following := next(waiting, None)) is not None:
            running[submit(following[1])] = following[0]
        if not running:
            return
        for reference in ready(list(running)):
            yield running.pop(reference), fetch(reference)


class _Processes:
    """So many places for processes; each holds one that lives, or none yet."""

    def __init__(self, function: str, workers: int, fresh: bool) -> None:
        self._function, self._fresh = function, fresh
        self._free: SimpleQueue[int] = SimpleQueue()
        for place in range(workers):
            self._free.put(place)
        self._living: dict[int, subprocess.Popen[str]] = {}
        self._closing, self._lock = False, threading.Lock()

    def ask(self, task: Task) -> dict[str, Any] | Lost:
        """Have a task done in a free place, and wait for the answer."""
        place = self._free.get()
        try:
            process = self._in(place)
            line = _exchanged(process, json.dumps(task))
            code = _end(self._living.pop(place)) if self._fresh or not line else 0
        finally:
            self._free.put(place)
        if code or not line:
            killed = "; it was killed, perhaps for memory" if code < 0 else ""
            return Lost(f"its process ended with code {code}{killed}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Interrupt what is at work, and kill what does not end in time."""
        with self._lock:
            self._closing = True
            living = list(self._living.values())
        for process in living:
            _close_stdin(process)
        deadline = time.monotonic() + GRACE
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
            _end(process)

    def _in(self, place: int) -> subprocess.Popen[str]:
        with self._lock:
            if place not in self._living:
                if self._closing:
                    raise RuntimeError("nobody waits for the answer any more")
                self._living[place] = subprocess.Popen(
                    [sys.executable, "-m", "metalad.runtime.tasks", self._function],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, WORKER: str(place)},
                    start_new_session=True,  # Ctrl-C does not reach it there: it is ended by its stdin alone
                )
            return self._living[place]


def _exchanged(process: subprocess.Popen[str], line: str) -> str:
    """Return the line that a process answers; nothing if it ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError, ValueError):  # it ended, or is being ended
        process.stdin.write(line + "\n")
        process.stdin.flush()
    return process.stdout.readline()


def _close_stdin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # what a killed process did not read is still in the buffer
        process.stdin.close()


def _end(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    _close_stdin(process)
    code = process.wait()
    process.stdout.close()
    return code


# Such a process


def main() -> None:
    """Do the tasks that stdin holds until it ends, and print their answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what else is printed must not stand among the answers
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored by what a shell starts with `&`
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        function = _loaded(sys.argv[1])
        while True:
            answer = function(json.loads(lines.get()))
            print(json.dumps(answer, allow_nan=False), file=answers, flush=True)


def _listen(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    if hasattr(signal, "pthread_kill"):  # wakes the main thread where it waits, too
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)
    time.sleep(GRACE)
    os._exit(1)


def _loaded(function: str) -> Callable[[Task], dict[str, Any]]:
    module, _, name = function.partition(":")
    found: Callable[[Task], dict[str, Any]] = getattr(importlib.import_module(module), name)
    return found


def rank() -> int:
    """Return this process's number among those that `torchrun` started, 0 without it."""
    return int(os.environ["RANK"]) if by_torchrun() else 0


def by_torchrun() -> bool:
    """Return whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


# Ray


def on_ray(
    function: str, tasks: Iterable[Task], address: str, workers: int | None, needs: Needs, *, fresh: bool
) -> Answers:
    """Do the tasks on a Ray cluster.

    Args:
        function: `module:name` of a function from a task to its answer; metalad is installed on every node.
        tasks: taken as they are needed; folders in them must mean the same on every node.
        address: of a running cluster (`auto`, `ray://…`), or `local` for one on this machine.
        workers: most tasks at once; None: as many as there is room for.
        needs: what is set aside for a task.
        fresh: give each task a process of its own.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at the address, or none of its nodes can do a task.
    """
    ray = _connected(address, needs.threads, workers)
    running: dict[Any, int] = {}
    try:
        share = _share(ray, needs)
        # max_calls: how many tasks a process does; 0 is no limit.
        remote = ray.remote(**share, max_calls=int(fresh), max_retries=1)(_on_worker)
        room = 2 * math.ceil(ray.cluster_resources().get("CPU", 1) / needs.threads)
        yield from _pumped(
            tasks,
            workers or room,
            lambda task: remote.remote(function, dict(task)),
            lambda references: ray.wait(references)[0],
            lambda reference: _fetched(ray, reference),
            running,
        )
    finally:
        _cancel(ray, list(running))
        ray.shutdown()


def gpus_on_ray(device: str) -> float | None:
    """Return the GPUs that a task on a device needs, None for one if there is any.

    Raises:
        ConfigError: no such device, or a GPU by its number, which only means something on one machine.
    """
    if device not in (known := {"cpu": 0.0, "cuda": 1.0, "auto": None}):
        raise ConfigError(f"there is no device {device!r} on Ray, which gives each task a GPU; take cpu, cuda or auto")
    return known[device]


def _on_worker(function: str, task: Task) -> dict[str, Any]:
    return _loaded(function)(task)


def _fetched(ray: Any, reference: Any) -> dict[str, Any] | Lost:
    try:
        answer: dict[str, Any] = ray.get(reference)
        return answer
    except ray.exceptions.RayError as error:
        return Lost(f"Ray: {' '.join(str(error).split())[:300]}")


def _cancel(ray: Any, references: Sequence[Any]) -> None:
    """Interrupt the tasks at work, and give them time to end what they are writing."""
    for reference in references:
        ray.cancel(reference, force=False)
    if references:
        ray.wait(list(references), num_returns=len(references), timeout=GRACE)


def _connected(address: str, threads: int, workers: int | None) -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError('--ray needs Ray, which is not installed; `pip install "metalad[ray]"`') from None
    where: dict[str, Any] = {"address": address}
    if address == LOCAL:
        processors = threads * workers if workers else max(threads, os.cpu_count() or 1)
        where = {"address": "local", "num_cpus": processors, "include_dashboard": False}
    try:
        ray.init(**where, logging_level="ERROR", log_to_driver=False)
    except Exception as error:  # Ray says by a plain Exception that it did not start in time
        raise ConfigError(f"cannot reach Ray at {address}: {error}; start it by `ray start --head`") from error
    return ray


def _share(ray: Any, needs: Needs) -> dict[str, Any]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def most(resource: str) -> float:
        return float(max(node.get(resource, 0) for node in nodes))

    gpus = float(most("GPU") >= 1) if needs.gpus is None else needs.gpus
    # A task that asks for more than any node has would wait for ever.
    if most("GPU") < gpus:
        raise ConfigError("no node of the Ray cluster has a GPU; take --device cpu or auto")
    if most("CPU") < needs.threads:
        raise ConfigError(f"no node of the Ray cluster has {needs.threads} processors; choose fewer --threads")
    memory = int(min(needs.memory_gib * 2**30, most("memory")))
    return {"num_cpus": needs.threads, "num_gpus": gpus, "memory": memory}


if __name__ == "__main__":
    main()
