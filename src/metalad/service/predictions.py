"""`POST /v1/predict`: score the images of a request."""

import asyncio
import difflib
import json
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from metalad.service.bodies import Upload, base_name, checked_length, needs_parsing, read_body, uploads_of
from metalad.service.metrics import Metrics
from metalad.service.models import Registry, ServedModel
from metalad.service.pool import Slots, WorkerPool
from metalad.service.problems import Problem
from metalad.service.scoring import PARTS, Scored, Wanted, score_upload
from metalad.service.settings import Settings

PARAMETERS = ("model", "threshold", "include")
PICTURES = {"image/png": "PNG", "image/jpeg": "JPEG"}
"""Media types of an overlay, and Pillow's names of them."""
CLIENT_CLOSED = 499
"""Status in the log and the metrics where the client closed the connection; it is not sent."""


Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Predictions:
    """The endpoint, and what it needs."""

    settings: Settings
    registry: Registry
    pool: WorkerPool
    slots: Slots
    metrics: Metrics
    processors: threading.Semaphore

    async def answer(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            Problem: the request is refused, see `metalad.service.description`.
        """
        served, wanted = self._wanted(request)
        try:
            _, scored = await self.scored(request, served, wanted)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED)
        request.scope["metalad.summary"] = _summary(served, scored)
        return _response(served, scored, wanted)

    async def scored(
        self, request: Request, served: ServedModel, wanted: Wanted
    ) -> tuple[Sequence[Upload], Sequence[Scored]]:
        """Read the images of a request, and score them; `request.scope` gets a summary for the log.

        Raises:
            Problem: the queue is full (429), the body is refused, see `metalad.service.bodies`, or the answer takes too
                long (504). ClientDisconnect: the client closed the connection.
        """
        size = checked_length(request, self.settings.max_bytes)
        self.slots.take(1, size)  # before the body is read: a full queue costs no memory
        taken = 1
        try:
            body = await read_body(request, self.settings.max_bytes, self.settings.upload_timeout)
            deadline = time.monotonic() + self.settings.timeout
            uploads = await self._uploads(request, body, deadline)
            del body
            if wanted.picture and len(uploads) > 1:
                raise Problem(406, "a picture shows one image; send one, or accept application/json")
            self.slots.take(len(uploads) - 1)
            taken = len(uploads)
            scored = await self._scored(request, uploads, served, wanted, deadline)
        finally:
            self.slots.give_back(taken, size)
        for one in scored:
            self.metrics.count_image(served.name, one)
        return uploads, scored

    def _wanted(self, request: Request) -> tuple[ServedModel, Wanted]:
        for name in request.query_params:
            if name not in PARAMETERS:
                similar = difflib.get_close_matches(name, PARAMETERS)
                hint = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(PARAMETERS)}"
                raise Problem(422, f"there is no parameter {name[:80]!r}; {hint}")
        served = self.registry.get(request.query_params.get("model"))
        threshold = wanted_threshold(request.query_params.get("threshold"))
        include = frozenset(part for part in request.query_params.get("include", "").split(",") if part)
        if unknown := include.difference(PARTS):
            raise Problem(422, f"include has {min(unknown)[:80]!r}; it is a list of {' and '.join(PARTS)}")
        return served, Wanted(threshold, include, _picture(request), self.settings.max_pixels)

    async def _uploads(self, request: Request, body: bytes, deadline: float) -> Sequence[Upload]:
        kind = request.headers.get("content-type", "")
        limit = self.settings.max_images
        if not needs_parsing(kind):
            return uploads_of(kind, body, limit)
        return await _within(self.settings.timeout, request, deadline, asyncio.to_thread(uploads_of, kind, body, limit))

    async def _scored(
        self, request: Request, uploads: Sequence[Upload], served: ServedModel, wanted: Wanted, deadline: float
    ) -> Sequence[Scored]:
        futures = [self.pool.submit(self._call(upload, served, wanted), deadline) for upload in uploads]
        try:
            return await _within(self.settings.timeout, request, deadline, asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()

    def _call(self, upload: Upload, served: ServedModel, wanted: Wanted) -> Callable[[], Scored]:
        def call() -> Scored:
            start = time.perf_counter()
            scored = score_upload(upload, served, wanted, self.processors)
            seconds = time.perf_counter() - start
            self.slots.measured(seconds)
            self.metrics.inference.labels(served.name).observe(seconds)
            return scored

        return call


async def _within(timeout: float, request: Request, deadline: float, answer: Awaitable[Answer]) -> Answer:
    """Wait for an answer until the deadline, or until the client closes the connection.

    Raises:
        Problem: the deadline has passed (504). ClientDisconnect: the client closed the connection.
    """
    task, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise Problem(504, f"the answer took longer than {timeout:g} s", headers={"Retry-After": "1"})
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def wanted_threshold(text: str | None) -> float | None:
    """Return the number of the parameter `threshold`; None where it is not given.

    Raises:
        Problem: it is not a score above 0.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise Problem(422, f"threshold is {text[:80]!r}; it must be a score above 0")
    return value


def _picture(request: Request) -> str | None:
    """Return the format of the picture that the client prefers to JSON, if it prefers one.

    Raises:
        Problem: it accepts neither JSON nor a picture (406).
    """
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "*/*").split(",")]
    for kind in accepted:
        if kind in PICTURES:
            return PICTURES[kind]
        if kind in ("", "*/*", "application/*", "application/json"):
            return None
    raise Problem(406, f"answers are application/json, {' or '.join(PICTURES)}; accept one of them")


def _response(served: ServedModel, scored: Sequence[Scored], wanted: Wanted) -> Response:
    if all(one.error for one in scored):
        if len(scored) == 1:
            raise Problem(scored[0].status, f"the image cannot be scored: {scored[0].error}", name=scored[0].name)
        errors = [{"name": one.name, "error": one.error} for one in scored]
        raise Problem(422, f"none of {len(scored)} images can be scored", results=errors)
    facts = {"Metalad-Model-Hash": served.hash, "Cache-Control": "no-store"}
    if wanted.picture:
        (one,) = scored
        values = {"Metalad-Score": repr(one.score), "Metalad-Threshold": repr(one.threshold)}
        verdict = {"Metalad-Anomalous": "true" if one.is_anomalous else "false"}
        kind = f"image/{wanted.picture.lower()}"
        return Response(one.picture, headers=facts | values | verdict, media_type=kind)
    start = json.dumps({"model": served.name, "hash": served.hash})
    text = f'{start[:-1]}, "results": [{", ".join(one.text for one in scored)}]}}\n'
    return Response(text, headers=facts, media_type="application/json")


def _summary(served: ServedModel, scored: Sequence[Scored]) -> str:
    if len(scored) > 1:
        anomalous, unreadable = (
            sum(bool(one.is_anomalous) for one in scored),
            sum(one.error is not None for one in scored),
        )
        return f"{served.name}: {len(scored)} images, {anomalous} anomalous, {unreadable} unreadable"
    (one,) = scored
    verdict = "unreadable" if one.score is None else f"{'NG' if one.is_anomalous else 'OK'} {one.score:.4g}"
    return f"{served.name}: {base_name(one.name)} {verdict}"
