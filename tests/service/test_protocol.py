"""Connections: invalid HTTP, slow clients, clients that close them, too many of them."""

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

import metalad
from benchmarks.load.malformed import KINDS, MAY_SUCCEED
from metalad.service import protocol
from metalad.service.application import create_application
from metalad.service.settings import Settings
from tests.service.clients import png
from tests.service.pictures import picture

SECONDS = 0.4
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


@pytest.fixture(scope="module")
def port(model: metalad.Model) -> Iterator[int]:
    patch = pytest.MonkeyPatch()
    for name in ("HEADER_SECONDS", "LINGER_SECONDS", "READ_SECONDS"):
        patch.setattr(protocol, name, SECONDS)
    patch.setattr(protocol, "MAX_CONNECTIONS", 20)
    listener = socket.create_server(("127.0.0.1", 0))
    application = create_application(
        Settings(models=(f"tiny={model.path}",), upload_timeout=SECONDS, max_megabytes=1.0)
    )
    config = uvicorn.Config(
        application, http=protocol.protocol_with(SECONDS, 1_000_000), ws="none", lifespan="on", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)
    listener.close()
    patch.undo()
    assert not thread.is_alive()


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def received(connection: socket.socket) -> bytes:
    """Return everything until the service closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def is_alive(port: int) -> bool:
    content = png(picture(0))
    with connected(port) as connection:
        connection.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        return status(received(connection)) == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: " + b"x" * 100_000,
    ],
)
def test_invalid_http_is_answered_by_a_problem(port: int, sent: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(sent)
        answer = received(connection)
    assert status(answer) == 400
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    assert json.loads(body)["status"] == 400
    assert is_alive(port)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", 0),
        (HEAD[:30], 408),
        (HEAD + b"Content-Length: 100\r\n\r\n" + b"x" * 50, 408),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", 408),
        (HEAD + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n", 100),
    ],
    ids=["nothing", "headers", "body", "chunks", "expect"],
)
def test_a_client_that_stops_sending_is_answered_408_and_its_connection_closed(
    port: int, sent: bytes, expected: int
) -> None:
    start = time.monotonic()
    with connected(port) as connection:
        connection.sendall(sent)
        answer = received(connection)
    assert status(answer) == expected
    assert SECONDS * 0.9 <= time.monotonic() - start < 20 * SECONDS
    assert (b" 408 " in answer) == (expected != 0)


def test_the_rest_of_a_refused_body_is_read_for_a_short_time(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(HEAD + b"Content-Length: 99000000\r\n\r\n" + b"x" * 1000)
        answer = received(connection)
    assert status(answer) == 413


def test_a_small_refused_body_leaves_the_connection_usable(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        for method, path, expected in (("POST", "/v1/predict?model=other", 404), ("GET", "/healthz", 200)):
            connection.request(method, path, b"abc" if method == "POST" else None)
            with connection.getresponse() as answer:
                answer.read()
                assert (answer.status, answer.will_close) == (expected, False)


def test_clients_that_close_the_connection_leave_no_slot_taken(port: int) -> None:
    content = png(picture(0))
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content
    for sent in (request[:-10], request):
        for _ in range(5):
            with connected(port) as connection:
                connection.sendall(sent)
    deadline = time.monotonic() + 10
    metrics = b""
    while b"metalad_queue_images 0.0" not in metrics and time.monotonic() < deadline:
        with connected(port) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            metrics = received(connection)
    assert b"metalad_queue_images 0.0" in metrics
    assert is_alive(port)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_requests_of_each_kind_are_refused_or_their_connection_closed(port: int, kind: str) -> None:
    image = png(picture(0))
    found = []
    for seed in range(8):
        with connected(port) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(KINDS[kind](random.Random(seed), image))
            found.append(status(connection.recv(1 << 16)))
    assert set(found) <= {0, *range(400, 500), *((200,) if kind in MAY_SUCCEED else ())}
    assert sum(each > 0 for each in found) > 4
    assert is_alive(port)


def test_a_connection_too_many_is_refused(port: int) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connected(port))
        with connected(port) as connection:
            assert status(received(connection)) == 503
    time.sleep(0.1)
    assert is_alive(port)
