"""Parallel tasks in processes of this machine or on Ray. Tasks and answers are JSON objects. Does not import torch.

`python -m metalad.runtime.tasks MODULE:FUNCTION` is a worker process: it reads one task per line from stdin and prints
one answer per line. When stdin is closed, it exits; a running task is interrupted as by Ctrl-C.
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
from metalad.runtime.packages import disable_telemetry
from metalad.runtime.streams import open_closed_streams

LOCAL = "local"
WORKER = "METALAD_WORKER"
"""Environment variable with the number of a worker process on this machine, which determines its GPU."""
GRACE_SECONDS = 10.0
"""Time that an interrupted task has to finish writing its files."""

Task = Mapping[str, Any]


@dataclass(frozen=True)
class TaskFailure:
    """The reason why a task has no answer: its process was killed, or Ray failed."""

    reason: str


@dataclass(frozen=True)
class TaskResources:
    """Resources that Ray reserves for a task: CPUs, memory in GiB, GPUs (None: one if the cluster has any)."""

    threads: int = 1
    memory_gib: float = 3.0
    gpus: float | None = None


Answers = Generator[tuple[int, dict[str, Any] | TaskFailure], None, None]
"""Pairs of the index of a task and its answer, in the order of completion."""


def in_processes(function: str, tasks: Iterable[Task], workers: int, *, fresh: bool) -> Answers:
    """Run tasks in worker processes; if a process is killed, only its task fails.

    Closing the generator interrupts the processes; each of them finishes the file that it is writing, and exits.

    Args:
        function: `module:name` of a function from a task to its answer.
        tasks: consumed lazily, at most two tasks per process ahead.
        workers: number of processes.
        fresh: start a new process for each task, so that tasks do not share memory or threads.
    """
    processes, pool = _Processes(function, workers, fresh), ThreadPoolExecutor(workers)
    try:
        yield from _answers(
            tasks,
            2 * workers,
            lambda task: pool.submit(processes.run, task),
            lambda futures: wait(futures, return_when=FIRST_COMPLETED).done,
            lambda future: future.result(),
        )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        processes.close()
        pool.shutdown()


def _answers(
    tasks: Iterable[Task],
    limit: int,
    submit: Callable[[Task], Any],
    ready: Callable[[list[Any]], Iterable[Any]],
    fetch: Callable[[Any], dict[str, Any] | TaskFailure],
    running: dict[Any, int] | None = None,
) -> Answers:
    numbered = enumerate(tasks)
    running = {} if running is None else running
    while True:
        while len(running) < limit and (following := next(numbered, None)) is not None:
            running[submit(following[1])] = following[0]
        if not running:
            return
        for reference in ready(list(running)):
            yield running.pop(reference), fetch(reference)


class _Processes:
    """A pool of numbered worker processes; each is started when its number is first used."""

    def __init__(self, function: str, workers: int, fresh: bool) -> None:
        self._function, self._fresh = function, fresh
        self._free: SimpleQueue[int] = SimpleQueue()
        for number in range(workers):
            self._free.put(number)
        self._running: dict[int, subprocess.Popen[str]] = {}
        self._closing, self._lock = False, threading.Lock()

    def run(self, task: Task) -> dict[str, Any] | TaskFailure:
        """Run a task in a free process, and wait for the answer."""
        number = self._free.get()
        try:
            process = self._process(number)
            line = _exchange(process, json.dumps(task))
            code = _end(self._running.pop(number)) if self._fresh or not line else 0
        finally:
            self._free.put(number)
        if code or not line:
            killed = "; it was killed, perhaps because memory ran out" if code < 0 else ""
            return TaskFailure(f"its process ended with code {code}{killed}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Interrupt the running tasks, and kill the processes that do not exit in time."""
        with self._lock:
            self._closing = True
            processes = list(self._running.values())
        for process in processes:
            _close_stdin(process)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
            _end(process)

    def _process(self, number: int) -> subprocess.Popen[str]:
        with self._lock:
            if number not in self._running:
                if self._closing:
                    raise RuntimeError("the pool is closed")
                self._running[number] = subprocess.Popen(
                    [sys.executable, "-m", "metalad.runtime.tasks", self._function],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, WORKER: str(number)},
                    start_new_session=True,  # not reached by Ctrl-C: only closing stdin ends it
                )
            return self._running[number]


def _exchange(process: subprocess.Popen[str], line: str) -> str:
    """Send a line to a process and return its answer; empty if the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError, ValueError):  # the process ended, or is being closed
        process.stdin.write(line + "\n")
        process.stdin.flush()
    return process.stdout.readline()


def _close_stdin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # the buffer can hold a line that a killed process did not read
        process.stdin.close()


def _end(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    _close_stdin(process)
    code = process.wait()
    process.stdout.close()
    return code


# The worker process


def main() -> None:
    """Run the tasks from stdin until it is closed, and print their answers."""
    open_closed_streams()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # other output must not mix with the answers
    signal.signal(signal.SIGINT, signal.default_int_handler)  # processes that a shell starts with `&` ignore SIGINT
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        function = _load_function(sys.argv[1])
        while True:
            answer = function(json.loads(lines.get()))
            print(json.dumps(answer, allow_nan=False), file=answers, flush=True)


def _listen(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    if hasattr(signal, "pthread_kill"):  # also wakes a main thread that waits for a task
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _load_function(path: str) -> Callable[[Task], dict[str, Any]]:
    module, _, name = path.partition(":")
    function: Callable[[Task], dict[str, Any]] = getattr(importlib.import_module(module), name)
    return function


def rank() -> int:
    """Return the rank of this process among those that `torchrun` started; 0 without `torchrun`."""
    return int(os.environ["RANK"]) if by_torchrun() else 0


def by_torchrun() -> bool:
    """Return whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


# Ray


def on_ray(
    function: str, tasks: Iterable[Task], address: str, workers: int | None, resources: TaskResources, *, fresh: bool
) -> Answers:
    """Run tasks on a Ray cluster.

    Args:
        function: `module:name` of a function from a task to its answer; metalad must be installed on every node.
        tasks: consumed lazily; file paths in them must be valid on every node.
        address: address of a running cluster (`auto`, `ray://…`), or `local` to start one on this machine.
        workers: maximum number of parallel tasks; None: limited by the CPUs of the cluster.
        resources: resources that are reserved for each task.
        fresh: start a new process for each task.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at the address, or no node has the resources.
    """
    ray = _connect(address, resources.threads, workers)
    running: dict[Any, int] = {}
    try:
        options = _resource_options(ray, resources)
        # max_calls: number of tasks per process; 0 means no limit.
        remote = ray.remote(**options, max_calls=int(fresh), max_retries=1)(_on_worker)
        limit = 2 * math.ceil(ray.cluster_resources().get("CPU", 1) / resources.threads)
        yield from _answers(
            tasks,
            workers or limit,
            lambda task: remote.remote(function, dict(task)),
            lambda references: ray.wait(references)[0],
            lambda reference: _fetch(ray, reference),
            running,
        )
    finally:
        _cancel(ray, list(running))
        ray.shutdown()


def gpus_on_ray(device: str) -> float | None:
    """Return the number of GPUs that a task on a device needs; None: one if the cluster has any.

    Raises:
        ConfigError: no such device, or a GPU with a number, which Ray assigns itself.
    """
    if device not in (gpus := {"cpu": 0.0, "cuda": 1.0, "auto": None}):
        raise ConfigError(f"there is no device {device!r} on Ray, which assigns the GPUs; use cpu, cuda or auto")
    return gpus[device]


def _on_worker(function: str, task: Task) -> dict[str, Any]:
    return _load_function(function)(task)


def _fetch(ray: Any, reference: Any) -> dict[str, Any] | TaskFailure:
    try:
        answer: dict[str, Any] = ray.get(reference)
        return answer
    except ray.exceptions.RayError as error:
        return TaskFailure(f"Ray: {' '.join(str(error).split())[:300]}")


def _cancel(ray: Any, references: Sequence[Any]) -> None:
    """Interrupt the running tasks, and give them time to finish writing their files."""
    for reference in references:
        ray.cancel(reference, force=False)
    if references:
        ray.wait(list(references), num_returns=len(references), timeout=GRACE_SECONDS)


def _connect(address: str, threads: int, workers: int | None) -> Any:
    try:
        disable_telemetry()
        import ray
    except ImportError:
        raise ConfigError('--ray needs Ray, which is not installed; `pip install "metalad[ray]"`') from None
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        cpus = threads * workers if workers else max(threads, os.cpu_count() or 1)
        options = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    try:
        ray.init(**options, logging_level="ERROR", log_to_driver=False)
    except Exception as error:  # Ray raises a plain Exception if it does not start in time
        raise ConfigError(f"cannot reach Ray at {address}: {error}; start it with `ray start --head`") from error
    return ray


def _resource_options(ray: Any, resources: TaskResources) -> dict[str, Any]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def maximum(resource: str) -> float:
        return float(max(node.get(resource, 0) for node in nodes))

    gpus = float(maximum("GPU") >= 1) if resources.gpus is None else resources.gpus
    # Ray never schedules a task that requires more than any node has.
    if maximum("GPU") < gpus:
        raise ConfigError("no node of the Ray cluster has a GPU; use --device cpu or auto")
    if maximum("CPU") < resources.threads:
        raise ConfigError(f"no node of the Ray cluster has {resources.threads} CPUs; choose fewer --threads")
    memory = int(min(resources.memory_gib * 2**30, maximum("memory")))
    return {"num_cpus": resources.threads, "num_gpus": gpus, "memory": memory}


if __name__ == "__main__":
    main()
