"""An HTTP/1.1 client on raw asyncio sockets: requests are bytes made before, so that the client takes little time."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

BOUNDARY = b"metalad-load-test-boundary"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: close", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after: (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """An answer: status 0 is a connection that was closed before one byte of an answer, -1 within an answer."""

    status: int
    head: bytes = b""
    body: bytes = b""

    @property
    def retry_after(self) -> float:
        """Seconds to wait before the next request, 0 where the answer does not state them."""
        found = _RETRY.search(self.head)
        return float(found[1]) if found else 0.0


@dataclass
class Connection:
    """One connection, opened again where the service closes it."""

    port: int
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None, repr=False)

    async def send(self, request: bytes, *, half: bytes = b"", pause: float = 0.0) -> Answer:
        """Send a request, and return the answer; `half` is sent after a pause."""
        reader, writer = await self._open()
        try:
            writer.write(request)
            if half:
                await asyncio.sleep(pause)
                writer.write(half)
            answer = await _read(reader)
        except (ConnectionError, BrokenPipeError):
            answer = Answer(0)
        if answer.status <= 0 or _CLOSE.search(answer.head):
            await self.close()
        return answer

    async def write(self, data: bytes) -> bool:
        """Send bytes without waiting for an answer; return whether the connection is open."""
        _, writer = await self._open()
        try:
            writer.write(data)
            await writer.drain()
        except (ConnectionError, BrokenPipeError):
            return False
        return True

    async def read(self) -> Answer:
        """Wait for an answer."""
        reader, _ = await self._open()
        try:
            return await _read(reader)
        except (ConnectionError, BrokenPipeError):
            return Answer(0)

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None or self._streams[0].at_eof():  # the service closes idle connections
            await self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        return self._streams


async def _read(reader: asyncio.StreamReader) -> Answer:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return Answer(-1 if error.partial else 0)
    except asyncio.LimitOverrunError:
        return Answer(-1)
    found = _LENGTH.search(head)
    try:
        body = await reader.readexactly(int(found[1])) if found else b""
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(-1, head)
    return Answer(int(head.split(b" ", 2)[1]), head, body)


def request_of(
    body: bytes,
    kind: str = "image/png",
    *,
    path: str = "/v1/predict",
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of a request; a header with the value `-` is left out."""
    all_headers = {"Host": "localhost", "Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers.items() if value != "-")]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def form_of(*files: tuple[bytes, bytes]) -> bytes:
    """Return a multipart form of files, each a name and a content; its boundary is `BOUNDARY`."""
    parts = [
        b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="file"; filename="' + name + b'"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


FORM = f"multipart/form-data; boundary={BOUNDARY.decode()}"
