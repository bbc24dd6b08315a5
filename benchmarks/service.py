"""Load test of `metalad serve` on this machine: speed, memory, overload, damaged requests, tokens, SIGTERM.

python -m benchmarks.service MODEL IMAGES [--seconds 60] [--clients 32] [--malformed 10000] [--json FILE]

IMAGES is a folder of at least two images of which no two are equal, such as bottle/test of MVTec AD. They are resized
to 900 x 900 pixels and written as PNG files; `metalad predict` scores the files, and each answer of the service is
compared with its scores, bit for bit. The service, and offline `predict`, run as processes of their own; the clients,
in this process, share the processors with them. The exit code is 1 if a claim does not hold.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.load.client import FORM, Answer, Connection, form_of, request_of
from benchmarks.load.malformed import KINDS, MAY_SUCCEED
from benchmarks.load.process import ServiceProcess, predict_offline
from benchmarks.load.slow import SLOW, UPLOAD_SECONDS
from metalad.data.images import find_images

TOKEN = "load-test-token-of-24-characters"
_SCORE = re.compile(rb'"name": "([^"]*)", "score": ([^,]+),')
_MEGABYTE = 1 << 20
MIN_RATIO = 0.8


@dataclass
class Run:
    """What is tested, and the rows that were measured.

    requests: by image name. scores: of `metalad predict`. failures: claims that did not hold.
    """

    model: Path
    requests: Mapping[str, bytes]
    images: Mapping[str, bytes]
    scores: Mapping[str, float]
    clients: int
    seconds: float
    rows: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def put(self, name: str, value: Any, holds: bool = True, text: str = "") -> None:
        """Note a measured value and print it; a claim that does not hold is a failure."""
        self.rows[name] = value
        print(f"  {name:<44} {text or value}{'' if holds else '   FAILED'}", flush=True)
        if not holds:
            self.failures.append(name)


@dataclass
class Load:
    """Answers to the clients of one phase."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    wrong: int = 0

    def add(self, run: Run, name: str, answer: Answer, seconds: float) -> None:
        """Count an answer, and compare its score with the offline one."""
        self.statuses[answer.status] += 1
        if answer.status != 200:
            return
        self.latencies.append(seconds)
        found = _SCORE.search(answer.body)
        if found is None or found[1].decode() != name or float(found[2]) != run.scores[name]:
            self.wrong += 1

    def quantile(self, fraction: float) -> float:
        """Return a quantile of the latencies of answers with a result, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run folder, a model file or an exported file")
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument("--seconds", type=float, default=60, help="of load; overload and SIGTERM take a part of it")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--malformed", type=int, default=10_000, metavar="N", help="number of damaged requests")
    parser.add_argument("--side", type=int, default=900, help="of the pictures, in pixels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = resized(arguments.images, Path(scratch) / "images", arguments.side, arguments.seconds)
        scores, offline = predict_offline(arguments.model, folder, Path(scratch) / "out")
        images = {path.name: path.read_bytes() for path in sorted(folder.glob("*.png")) if "-" not in path.name}
        requests = {name: request_of(form_of((name.encode(), content)), FORM) for name, content in images.items()}
        run = Run(arguments.model, requests, images, scores, arguments.clients, arguments.seconds)
        print(f"{arguments.model}: {len(images)} pictures of {arguments.side} x {arguments.side} pixels")
        run.put("offline predict, images/s", offline, text=f"{offline:.1f}")
        asyncio.run(loaded(run))
        _, later = predict_offline(arguments.model, folder, Path(scratch) / "out-2")
        run.put("offline predict afterwards, images/s", later, text=f"{later:.1f}")
        ratio = run.rows["images/s"] / ((offline + later) / 2)
        run.put("service / offline predict", ratio, ratio >= MIN_RATIO, f"{ratio:.2f}")
        asyncio.run(overloaded(run))
        asyncio.run(damaged(run, arguments.malformed))
        asyncio.run(terminated(run))
    if arguments.json:
        arguments.json.write_text(json.dumps(run.rows, indent=2) + "\n", encoding="utf-8")
    print(f"{len(run.failures)} claims failed: {', '.join(run.failures)}" if run.failures else "all claims hold")
    return 1 if run.failures else 0


def resized(source: Path, folder: Path, side: int, seconds: float) -> Path:
    """Write the images as PNG files of one size, and links to them, so that offline predict takes some time."""
    folder.mkdir()
    for number, path in enumerate(find_images(source)):
        with Image.open(path) as image:
            picture = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:03}.png", compress_level=3)
    originals = sorted(folder.iterdir())
    for copy in range(1, max(1, round(seconds * 5 / len(originals)))):
        for path in originals:
            (folder / f"{path.stem}-{copy}.png").symlink_to(path)
    return folder


@contextlib.contextmanager
def served(run: Run, *options: str) -> Iterator[ServiceProcess]:
    service = ServiceProcess(run.model, *options)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.wait()


async def drive(
    run: Run, service: ServiceProcess, load: Load, clients: int, goes_on: Callable[[], bool], *, waits: bool
) -> None:
    """Let clients send pictures one after the other; where `waits`, they wait as long as a 429 states."""
    names = itertools.cycle(run.requests)

    async def client(delay: float) -> None:
        await asyncio.sleep(delay)
        connection = Connection(service.port)
        while goes_on():
            name = next(names)
            start = time.perf_counter()
            try:
                answer = await connection.send(run.requests[name])
            except ConnectionError:  # the service has stopped
                load.statuses[0] += 1
                return
            load.add(run, name, answer, time.perf_counter() - start)
            if answer.status <= 0:
                return
            if waits and answer.retry_after:
                await asyncio.sleep(answer.retry_after * (0.5 + random.random()))
        await connection.close()

    await asyncio.gather(*(client(0.002 * number) for number in range(clients)))


async def watched(service: ServiceProcess, work: Awaitable[None]) -> Sequence[float]:
    """Return the resident memory of the service in MB, once a second while work is done."""
    sizes = []

    async def watch() -> None:
        while service.process.poll() is None:
            sizes.append(service.resident_bytes() / _MEGABYTE)
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    await work
    watching.cancel()
    return sizes


def until(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


def put_memory(run: Run, name: str, sizes: Sequence[float], allowed: float) -> None:
    """Compare the lowest value of the last fifth with that of the second fifth; large images give peaks."""
    fifth = max(1, len(sizes) // 5)
    early, late = min(sizes[fifth : 2 * fifth] or sizes), min(sizes[-fifth:])
    text = f"{early:.0f} early, {late:.0f} late; at most {max(sizes):.0f}"
    run.put(name, [round(size) for size in sizes], late <= early + allowed, text)


async def loaded(run: Run) -> None:
    print(f"{run.clients} clients for {run.seconds:g} s")
    with served(run) as service:
        await drive(run, service, Load(), run.clients, until(min(5, run.seconds)), waits=True)
        load, before, start = Load(), service.processor_seconds(), time.monotonic()
        own = time.process_time()
        sizes = await watched(service, drive(run, service, load, run.clients, until(run.seconds), waits=True))
        seconds = time.monotonic() - start
        speed = load.statuses[200] / seconds
        run.put("answers", sum(load.statuses.values()), load.statuses.keys() == {200}, str(dict(load.statuses)))
        run.put("answers with another score or name", load.wrong, load.wrong == 0)
        run.put("latency p50, s", load.quantile(0.5), text=f"{load.quantile(0.5):.3f}")
        run.put("latency p99, s", load.quantile(0.99), text=f"{load.quantile(0.99):.3f}")
        run.put("images/s", speed, text=f"{speed:.1f}")
        cores = (service.processor_seconds() - before) / seconds
        own_cores = (time.process_time() - own) / seconds
        run.put("processors used: service, clients", [cores, own_cores], text=f"{cores:.2f}, {own_cores:.2f}")
        put_memory(run, "memory of the service, MB", sizes, 30)
        run.put("exit code after SIGTERM", code := service.stop(), code == 0)


async def overloaded(run: Run) -> None:
    clients, seconds = 10 * run.clients, max(2.0, run.seconds / 3)
    for waits in (True, False):
        print(f"{clients} clients for {seconds:g} s, {'waiting' if waits else 'not waiting'} after 429")
        with served(run) as service:
            load, start = Load(), time.monotonic()
            sizes = await watched(service, drive(run, service, load, clients, until(seconds), waits=waits))
            speed = load.statuses[200] / (time.monotonic() - start)
            suffix = "waiting" if waits else "not waiting"
            only = load.statuses.keys() <= {200, 429}
            run.put(f"answers, {suffix}", dict(load.statuses), only and load.statuses[200] > 0)
            run.put(f"answers with another score, {suffix}", load.wrong, load.wrong == 0)
            run.put(f"images/s, {suffix}", speed, text=f"{speed:.1f}")
            run.put(f"memory, MB, {suffix}", max(sizes), text=f"at most {max(sizes):.0f}")


async def damaged(run: Run, count: int) -> None:
    print(f"{count:,} damaged requests, and wrong tokens")
    token = Path(tempfile.mkdtemp()) / "token"
    token.write_text(TOKEN, encoding="utf-8")
    token.chmod(0o600)
    options = ("--upload-timeout", str(UPLOAD_SECONDS), "--timeout", "20")
    with served(run, *options) as service:
        statuses: dict[str, Counter[int]] = {kind: Counter() for kind in KINDS}
        warm = drive(run, service, Load(), 8, until(2), waits=True)
        await warm
        sizes = await watched(service, _send_damaged(run, service, count, statuses))
        total: Counter[int] = sum(statuses.values(), Counter())
        for kind, found in sorted(statuses.items()):
            allowed = {0, *range(400, 500), *((200, 204) if kind in MAY_SUCCEED else ())}
            run.put(kind, dict(sorted(found.items())), found.keys() <= allowed)
        run.put("damaged requests", total.total(), not any(status >= 500 for status in total))
        run.put("service still runs", service.process.poll() is None, service.process.poll() is None)
        load = Load()
        await drive(run, service, load, 4, until(2), waits=True)
        run.put("good requests afterwards", dict(load.statuses), load.statuses.keys() == {200} and not load.wrong)
        put_memory(run, "memory of the service, MB (damaged)", sizes, 30)
        run.put("tracebacks in the log", service.tracebacks(), service.tracebacks() == 0)
        service.stop()
    with served(run, "--token-file", str(token)) as service:
        found = Counter[int]()
        connection = Connection(service.port)
        for header in _wrong_tokens():
            for method, path in (("POST", "/v1/predict"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/x")):
                headers = {"Authorization": header} if header else {}
                request = request_of(b"", method=method, path=path, headers=headers)
                found[(await connection.send(request)).status] += 1
        run.put("statuses with a wrong token", dict(found), found.keys() == {401})
        image = next(iter(run.images.values()))
        good = await connection.send(request_of(image, headers={"Authorization": f"Bearer {TOKEN}"}))
        run.put("status with the token", good.status, good.status == 200)
        service.stop()


def _wrong_tokens() -> Iterator[str]:
    yield from ("", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"bearer{TOKEN}")
    yield from ("Bearer " + "x" * 8000, "Bearer \xff\xfe", f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN} {TOKEN}", "null")


async def _send_damaged(run: Run, service: ServiceProcess, count: int, statuses: dict[str, Counter[int]]) -> None:
    image = next(iter(run.images.values()))
    slow = [kind for _ in range(max(1, count // 400)) for kind in SLOW]
    for kind in SLOW:
        statuses[kind] = Counter()
    kinds = iter(list(itertools.islice(itertools.cycle(KINDS), count - len(slow))))

    async def fast(seed: int) -> None:
        rng = random.Random(seed)
        connection = Connection(service.port)
        for kind in kinds:
            request = KINDS[kind](rng, image)
            statuses[kind][(await _answered(connection.send(request))).status] += 1
            if kind in ("invalid HTTP", "huge length"):  # the next request would be read as the rest of this one
                await connection.close()
        await connection.close()

    async def slowly(kind: str, seed: int) -> None:
        connection = Connection(service.port)
        statuses[kind][(await _answered(SLOW[kind](connection, random.Random(seed), image))).status] += 1
        await connection.close()

    async def in_groups() -> None:
        for group in range(0, len(slow), 24):
            await asyncio.gather(*(slowly(kind, seed) for seed, kind in enumerate(slow[group : group + 24])))

    await asyncio.gather(in_groups(), *(fast(seed) for seed in range(8)))


async def _answered(answer: Awaitable[Answer]) -> Answer:
    """Return an answer; one that does not come within a minute has the status 999, and a refused connection 0."""
    try:
        return await asyncio.wait_for(answer, 60)
    except TimeoutError:
        return Answer(999)
    except ConnectionError:
        return Answer(0)


async def terminated(run: Run) -> None:
    print("SIGTERM under load")
    with served(run) as service:
        load = Load()
        work = asyncio.create_task(drive(run, service, load, run.clients, lambda: True, waits=True))
        await asyncio.sleep(max(1.0, run.seconds / 12))
        start = time.monotonic()
        code = await asyncio.to_thread(service.stop)
        seconds = time.monotonic() - start
        await work
        accepted, answered, closed = service.totals()
        received = sum(number for status, number in load.statuses.items() if status > 0)
        run.put("seconds to stop", seconds, text=f"{seconds:.2f}")
        run.put("exit code", code, code == 0)
        run.put("accepted, answered by the service", [accepted, answered], accepted == answered and closed == 0)
        run.put("complete answers at the clients", received, received == accepted and load.wrong == 0)
        run.put("statuses (0: not accepted)", dict(load.statuses), load.statuses.keys() <= {0, 200})


if __name__ == "__main__":
    sys.exit(main())
