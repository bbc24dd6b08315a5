"""Requests that take time, or whose client does not wait for the answer, by kind."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from benchmarks.load.client import Answer, Connection, request_of

UPLOAD_SECONDS = 4
"""Given to the service, so that slow uploads end soon."""


async def _slow_upload(connection: Connection, rng: random.Random, image: bytes) -> Answer:
    request = request_of(image)
    head = request.index(b"\r\n\r\n") + 4
    await connection.write(request[: head + rng.randrange(100)])
    for position in range(200):
        if not await connection.write(request[head + 100 + position : head + 101 + position]):
            break
        await asyncio.sleep(0.2)
        if (position + 1) * 0.2 > UPLOAD_SECONDS:
            break
    return await connection.read()


async def _slow_headers(connection: Connection, rng: random.Random, image: bytes) -> Answer:
    await connection.write(request_of(image)[: rng.randrange(1, 40)])
    return await connection.read()


async def _nothing(connection: Connection, _: random.Random, __: bytes) -> Answer:
    await connection.write(b"")
    return await connection.read()


async def _truncated_upload(connection: Connection, rng: random.Random, image: bytes) -> Answer:
    await connection.write(request_of(image)[: rng.randrange(200, len(image))])
    await asyncio.sleep(rng.random())
    await connection.close()
    return Answer(0)


async def _gone_before_the_answer(connection: Connection, rng: random.Random, image: bytes) -> Answer:
    await connection.write(request_of(image))
    await asyncio.sleep(0.05 * rng.random())
    await connection.close()
    return Answer(0)


async def _no_body_after_continue(connection: Connection, _: random.Random, image: bytes) -> Answer:
    request = request_of(image, headers={"Expect": "100-continue"})
    return await connection.send(request[: request.index(b"\r\n\r\n") + 4])


async def _endless_chunks(connection: Connection, _: random.Random, image: bytes) -> Answer:
    await connection.write(request_of(b"", headers={"Content-Length": "-", "Transfer-Encoding": "chunked"}))
    block = b"%x\r\n" % len(image) + image + b"\r\n"
    for _number in range(40_000_000 // len(image)):
        if not await connection.write(block):
            break
    return await connection.read()


SLOW: dict[str, Callable[[Connection, random.Random, bytes], Awaitable[Answer]]] = {
    "slow upload": _slow_upload,
    "slow headers": _slow_headers,
    "no byte": _nothing,
    "truncated upload": _truncated_upload,
    "client gone before the answer": _gone_before_the_answer,
    "no body after 100 Continue": _no_body_after_continue,
    "chunks beyond the limit": _endless_chunks,
}
"""Requests that take time, or whose client does not wait."""
