"""Refuse requests without the token, from other sites and for other hosts; count and log the others."""

import hmac
import time
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metalad.runtime.errors import printable
from metalad.runtime.progress import logger
from metalad.service.metrics import Metrics
from metalad.service.problems import Problem
from metalad.service.settings import Settings, is_loopback

QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Requests of monitors, which are not logged."""


@dataclass
class Tally:
    """Requests that reached the application, and those that it answered; printed when the service ends."""

    accepted: int = 0
    answered: int = 0
    closed: int = 0


@dataclass(frozen=True)
class Guard:
    """An ASGI middleware around the application.

    paths: all that exist. open_paths: those that need no token; all others need it, also where nothing exists.
    """

    app: ASGIApp
    settings: Settings
    metrics: Metrics
    paths: frozenset[str]
    open_paths: frozenset[str]
    tally: Tally = field(default_factory=Tally)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.tally.accepted += 1
        try:
            problem = self._refusal(scope)
            if problem is None:
                await self.app(scope, receive, observed)
            else:
                await problem.response()(scope, receive, observed)
        except Exception:
            status = status or 500  # answered outside of this middleware
            raise
        finally:
            self._record(scope, status, time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        if self.settings.token is not None:
            if scope["path"] in self.open_paths or _has_token(headers, self.settings.token):
                return None
            wanted = {"WWW-Authenticate": 'Bearer realm="metalad"'}
            return Problem(401, "this needs the header `Authorization: Bearer TOKEN`", headers=wanted)
        if self.settings.any_host:
            return None
        if not is_loopback(_host(headers.get("host", ""))):
            return Problem(
                421, "the service without a token answers only requests to localhost; see --token-file in the docs"
            )
        # A page of another site could otherwise send pictures to the service of a visitor's own computer.
        if scope["method"] not in ("GET", "HEAD") and _is_from_another_site(headers):
            return Problem(403, "a page of another site sent this request")
        return None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
        if status in (0, 499):
            self.tally.closed += 1
        else:
            self.tally.answered += 1
        self.metrics.requests.labels(method, path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        if path not in QUIET:
            summary = scope.get("metalad.summary", "")
            line = f"{scope['method']} {scope['path'][:200]} {status} {seconds:.3f} s {summary}"
            logger.info("%s", printable(line.rstrip()))


def _has_token(headers: Headers, token: str) -> bool:
    kind, _, given = headers.get("authorization", "").partition(" ")
    matches = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    return matches and kind.lower() == "bearer"


def _is_from_another_site(headers: Headers) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("cross-site", "same-site")
    origin = headers.get("origin")  # of a browser that does not send the former
    return origin is not None and not is_loopback(_host(origin.partition("://")[2]))


def _host(header: str) -> str:
    """Return a Host header without the port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()
