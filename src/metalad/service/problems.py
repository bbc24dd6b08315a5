"""Errors of the service as JSON problem details (RFC 9457), never a traceback."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that is refused: the status of the answer, and one sentence that states the reason.

    headers: of the answer, such as Retry-After. members: further members of the JSON object.
    """

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.status, self.detail = status, " ".join(detail.split())
        self.headers, self.members = dict(headers or {}), members

    def to_dict(self) -> dict[str, Any]:
        """Return the members of the JSON object."""
        title = HTTPStatus(self.status).phrase
        return {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail, **self.members}

    def response(self) -> Response:
        """Return the answer."""
        body = json.dumps(self.to_dict(), allow_nan=False)
        return Response(body, self.status, {"Cache-Control": "no-store", **self.headers}, MEDIA_TYPE)


async def answer_problem(_: Request, error: Exception) -> Response:
    """Answer a `Problem`; an exception handler of Starlette."""
    assert isinstance(error, Problem)
    return error.response()


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Answer an unknown path (404) or a method that a path does not support (405)."""
    assert isinstance(error, HTTPException)
    detail = {
        404: "there is nothing at this path; see /docs",
        405: f"this path does not support {request.method}; see /docs",
    }
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return Problem(error.status_code, detail.get(error.status_code, str(error.detail)), headers=headers).response()


async def answer_bug(_: Request, __: Exception) -> Response:
    """Answer an unexpected error; its traceback is in the log of the service."""
    return Problem(500, "an internal error; the log of the service describes it").response()
