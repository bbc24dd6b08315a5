"""Read the images of a request: a raw image, a multipart form with files, or JSON with images in base64.

Everything stays in memory; the names that a client gives are only repeated in the answer.
"""

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from starlette.requests import Request

from metalad.service.problems import Problem

RAW_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded")
"""Types besides image/* that hold one image; the second is what `curl --data-binary` sends."""
MAX_NAME = 255
MAX_DIGITS = 18
OTHER_PARTS = 16
"""Parts of a form without a file name that are accepted, and ignored."""


@dataclass(frozen=True)
class Upload:
    """The content of an image file, and its name as the client gave it, or `image`."""

    name: str
    content: bytes


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """Return the body of a request.

    Raises:
        Problem: it is longer than `max_bytes` (413), or it did not arrive within `seconds` (408).
        ClientDisconnect: the client closed the connection.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise _too_long(max_bytes)
                chunks.append(chunk)
    except TimeoutError:
        close = {"Connection": "close"}
        raise Problem(408, f"the request did not arrive within {seconds:g} s", headers=close) from None
    return b"".join(chunks)


def checked_length(request: Request, max_bytes: int) -> int:
    """Return the length that the headers announce, the maximum where they do not announce it.

    Raises:
        Problem: it is longer than `max_bytes` (413), its length is not a number (400), or it is compressed (415).
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Problem(415, f"the body is compressed ({encoding[:40]}); send the file as it is")
    length = request.headers.get("content-length")
    if length is None:
        return max_bytes
    if not length.isascii() or not length.isdigit():
        raise Problem(400, "Content-Length is not a number")
    if len(length) > MAX_DIGITS or int(length) > max_bytes:
        raise _too_long(max_bytes)
    return int(length)


def _too_long(max_bytes: int) -> Problem:
    return Problem(
        413, f"the body is longer than the limit of {max_bytes:,} bytes; send fewer or smaller images", limit=max_bytes
    )


def uploads_of(content_type: str, body: bytes, max_images: int) -> list[Upload]:
    """Return the images of a body, at least one; called in a worker thread where the body must be parsed.

    Raises:
        Problem: the type is not supported (415), the form or the JSON is damaged (400), or it is empty, has no image,
            more than `max_images`, or no base64 (422).
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        uploads = _of_form(content_type, body, max_images)
    elif kind == "application/json":
        uploads = _of_json(body, max_images)
    elif kind == "" or kind in RAW_TYPES or kind.startswith("image/"):
        if not body:
            raise Problem(422, "the file is empty (0 bytes); send the content of an image file")
        uploads = [Upload("image", body)]
    else:
        raise Problem(415, f"the type {kind[:80]!r} is not supported; send image/*, multipart/form-data or JSON")
    if not uploads:
        raise Problem(422, "the request has no image")
    return uploads


def needs_parsing(content_type: str) -> bool:
    """Return whether a body of this type must be parsed, which takes time."""
    return content_type.partition(";")[0].strip().lower() in ("multipart/form-data", "application/json")


def _of_form(content_type: str, body: bytes, max_images: int) -> list[Upload]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise Problem(400, "the form has no boundary in its Content-Type")
    form = _Form(max_images)
    try:
        MultipartParser(boundary, form.callbacks()).write(body)
    except FormParserError as error:
        raise Problem(400, "the form is damaged") from error
    if not form.is_complete:
        raise Problem(400, "the form ends before its last boundary")
    return form.uploads


class _Form:
    """Collects the files of a form; the parser calls its methods with parts of the body."""

    def __init__(self, max_images: int) -> None:
        self.uploads: list[Upload] = []
        self.is_complete = False
        self._max_images, self._others = max_images, 0
        self._field, self._value, self._content = bytearray(), bytearray(), bytearray()
        self._name: str | None = None

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        self._name, self._content = None, bytearray()

    def _header(self) -> None:
        from python_multipart.multipart import parse_options_header

        if bytes(self._field).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            if b"filename" in options:
                self._name = options[b"filename"].decode("utf-8", "replace")[:MAX_NAME] or "image"
        self._field.clear()
        self._value.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._content += memoryview(data)[start:end]

    def _end(self) -> None:
        if self._name is None:
            self._others += 1
            if self._others > OTHER_PARTS:
                raise Problem(422, f"the form has more than {OTHER_PARTS} parts without a file name")
            return
        _check_number(len(self.uploads) + 1, self._max_images)
        self.uploads.append(Upload(self._name, bytes(self._content)))

    def _complete(self) -> None:
        self.is_complete = True


def _of_json(body: bytes, max_images: int) -> list[Upload]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "the body is not valid JSON") from error
    images = value.get("images") if isinstance(value, dict) else value
    if not isinstance(images, list):
        raise Problem(422, 'JSON must be {"images": [...]} with base64 texts, or objects with "name" and "content"')
    _check_number(len(images), max_images)
    return [_of_item(number, item) for number, item in enumerate(images, 1)]


def _of_item(number: int, item: object) -> Upload:
    name, text = f"image {number}", item
    if isinstance(item, dict):
        text = item.get("content")
        given = item.get("name", name)
        if not isinstance(given, str):
            raise Problem(422, f"the name of image {number} is not a string")
        name = given[:MAX_NAME].encode("utf-8", "replace").decode()
    if not isinstance(text, str):
        raise Problem(422, f"image {number} is not a string in base64")
    try:
        joined = "".join(text.split())  # command-line tools write lines
        return Upload(name, base64.b64decode(joined, validate=True))
    except (binascii.Error, ValueError) as error:
        raise Problem(422, f"image {number} is not valid base64") from error


def _check_number(count: int, max_images: int) -> None:
    if count > max_images:
        raise Problem(413, f"the request has more than {max_images} images; send them in several requests")


def base_name(name: str) -> str:
    """Return the last part of a name, for the log."""
    return PurePosixPath(name.replace("\\", "/")).name or "image"
