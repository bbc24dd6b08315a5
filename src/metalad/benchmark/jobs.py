"""A job as plain data, and three ways to do many: here, in processes of their own, or on Ray. No torch here."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from metalad.benchmark.declaration import Cell, Configuration
from metalad.benchmark.rows import Row
from metalad.errors import ConfigError

LOCAL = "local"


@dataclass(frozen=True)
class Needs:
    """What Ray is to set aside for a cell: memory in GiB; `gpus` None takes one if the device may be a GPU."""

    memory_gib: float = 3.0
    gpus: float | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell with all that doing it needs, wherever that is.

    data: the category's folder, `work` the folder to train in; both absolute.
    config: all settings, to do a cell as an old row has it; None: the cell's settings and today's defaults.
    """

    suite: str
    cell: Cell
    data: str | None
    work: str
    threads: int
    device: str
    commit: str | None = None
    config: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the job in JSON's own types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Job":
        """Rebuild a job."""
        cell = dict(values["cell"])
        configuration = dict(cell.pop("configuration"))
        configuration["settings"] = tuple(configuration["settings"])
        return cls(**{**values, "cell": Cell(Configuration(**configuration), **cell)})


@dataclass(frozen=True)
class Failure:
    """Why a cell could not be done."""

    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the failure in JSON's own types."""
        return {"failure": self.reason}


Results = Generator[tuple[Job, Row | Failure], None, None]


def outcome(values: Mapping[str, Any]) -> Row | Failure:
    """Rebuild what `attempt` returned from JSON."""
    return Failure(values["failure"]) if "failure" in values else Row.from_json(values)


def one_by_one(jobs: Sequence[Job], *, progress: bool) -> Results:
    """Do the jobs in this process, in order."""
    from metalad.benchmark.job import attempt

    for job in jobs:
        yield job, attempt(job, progress=progress)


def in_processes(jobs: Sequence[Job], workers: int) -> Results:
    """Do so many jobs at once, each in a fresh process: one that is killed harms no other."""
    running: set[subprocess.Popen[str]] = set()

    def do(job: Job) -> Row | Failure:
        command = [sys.executable, "-m", "metalad.benchmark.job"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # In a session of its own Ctrl-C does not reach it: it is ended below, without a traceback.
        with subprocess.Popen(command, **pipes, start_new_session=True) as process:
            running.add(process)
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job.to_json()) + "\n")
                process.stdin.flush()  # and left open: the process ends when it closes
            lines = process.stdout.read().splitlines()
            with contextlib.suppress(BrokenPipeError):  # what a killed process did not read is still in the buffer
                process.stdin.close()
            running.discard(process)
            code = process.wait()
        if code or not lines:
            return Failure(
                f"its process ended with code {code}" + ("; it was killed, perhaps for memory" if code < 0 else "")
            )
        return outcome(json.loads(lines[-1]))

    pool = ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(do, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.kill()


def on_ray(jobs: Sequence[Job], address: str, workers: int | None, needs: Needs) -> Results:
    """Do the jobs as Ray tasks, one a cell, each in a fresh worker with its share of processors, GPUs and memory.

    Args:
        jobs: their folders must mean the same on every node, as on a shared file system.
        address: of a running cluster (`auto`, `ray://…`), or `local` for one on this machine.
        workers: most tasks at once; None: as many as there is room for.
        needs: memory and GPUs of a task; its processors are its threads.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _connected(address, jobs[0].threads, workers)
    try:
        remote = ray.remote(**_share(ray, jobs[0], needs))(_on_worker)
        waiting, running = list(jobs), dict[Any, Job]()
        while waiting or running:
            while waiting and len(running) < (workers or len(jobs)):
                job = waiting.pop(0)
                running[remote.remote(job.to_json())] = job
            ready, _ = ray.wait(list(running))
            for reference in ready:
                yield running.pop(reference), _fetched(ray, reference)
    finally:
        ray.shutdown()


def _on_worker(values: dict[str, Any]) -> dict[str, Any]:
    from metalad.benchmark.job import attempt

    return attempt(Job.from_json(values)).to_json()


def _fetched(ray: Any, reference: Any) -> Row | Failure:
    try:
        return outcome(ray.get(reference))
    except ray.exceptions.RayError as error:
        return Failure(f"Ray: {' '.join(str(error).split())[:300]}")


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
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot reach Ray at {address}: {error}; start it by `ray start --head`") from error
    return ray


def _share(ray: Any, job: Job, needs: Needs) -> dict[str, Any]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = needs.gpus
    if gpus is None:
        gpus = float(job.device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes))
    # A task that asks for more than any node has would wait for ever.
    memory = min(needs.memory_gib * 2**30, max(node.get("memory", 0) for node in nodes))
    if max(node.get("CPU", 0) for node in nodes) < job.threads:
        raise ConfigError(f"no node of the Ray cluster has {job.threads} processors; choose fewer --threads")
    # max_calls: a fresh process a cell, so that memory and threads are the cell's own.
    return {"num_cpus": job.threads, "num_gpus": gpus, "memory": int(memory), "max_calls": 1, "max_retries": 1}
