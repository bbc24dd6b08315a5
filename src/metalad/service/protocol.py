"""HTTP connections with limits that uvicorn lacks: time to send a request and to read an answer, and their number."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from metalad.service.problems import Problem

HEADER_SECONDS = 10.0
"""Time to send the headers of a request."""
LINGER_SECONDS = 5.0
"""Time to send the rest of a body that is too long, or of unknown length, and was answered before it was read."""
KEEP_ALIVE_SECONDS = 65
"""Time until an idle connection is closed; longer than reverse proxies keep theirs, 60 s by default in nginx."""
READ_SECONDS = 30.0
"""Time in which a client must read some of its answer."""
MAX_CONNECTIONS = 1000
"""Connections at once; a further one is refused (503)."""


class LimitedProtocol(H11Protocol):
    """One connection.

    The application limits the time to receive a body and answers 408. What it cannot do is done here: connections that
    send no complete headers, that send a body after it was refused, or that do not read their answer, are closed.
    """

    upload_seconds = 30.0
    max_bytes = 32_000_000

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._deadline: asyncio.TimerHandle | None = None
        self._in_body = False
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for the headers; refuse a connection too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            problem = Problem(503, f"more than {MAX_CONNECTIONS} connections", headers={"Retry-After": "1"})
            self._answer_and_close(problem)
        else:
            self._start(min(HEADER_SECONDS, self.upload_seconds))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop()
        if self._reading is not None:
            self._reading.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle received bytes, and set the time for what must follow."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            if not self._in_body:
                self._in_body = True
                self._start(self._rest_seconds() if self._is_answered() else self.upload_seconds + LINGER_SECONDS)
        elif state is h11.IDLE:
            self._in_body = False
            if self._deadline is None and self.timeout_keep_alive_task is None:
                self._start(min(HEADER_SECONDS, self.upload_seconds))
        else:
            self._in_body = False
            self._stop()

    def on_response_complete(self) -> None:
        """After an answer: give a client that still sends its body a short time."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._start(self._rest_seconds())

    def pause_writing(self) -> None:
        """Start the time to read the answer."""
        super().pause_writing()
        self._reading = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the time to read the answer."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, at last also one whose client does not read."""
        super().timeout_keep_alive_handler()
        self._reading = self._reading or self.loop.call_later(READ_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not valid HTTP, unless an answer was already begun."""
        self._answer_and_close(Problem(400, msg))

    def _is_answered(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    def _rest_seconds(self) -> float:
        """Return the time for the rest of a body: a client may read its answer only when it has sent everything."""
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        is_short = 0 < len(length) < 12 and int(length) <= self.max_bytes
        return max(self.upload_seconds, LINGER_SECONDS) if is_short else LINGER_SECONDS

    def _start(self, seconds: float) -> None:
        self._stop()
        self._deadline = self.loop.call_later(seconds, self._too_late)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._answer_and_close(Problem(408, f"the headers did not arrive within {HEADER_SECONDS:g} s"))
        else:
            self.transport.abort() if self._in_body else self.transport.close()

    def _answer_and_close(self, problem: Problem) -> None:
        """Answer without the application, where no answer was begun; close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = problem.response()
            headers = [*answer.raw_headers, (b"connection", b"close")]
            events = (
                h11.Response(status_code=answer.status_code, headers=headers),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            )
            try:
                for event in events:
                    self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:  # the answer to HEAD, or to a request in an impossible state
                pass
        self.transport.close()


def protocol_with(upload_seconds: float, max_bytes: int) -> type[LimitedProtocol]:
    """Return a protocol class whose clients have this time to send a body of at most this size."""
    return type("Protocol", (LimitedProtocol,), {"upload_seconds": upload_seconds, "max_bytes": max_bytes})
