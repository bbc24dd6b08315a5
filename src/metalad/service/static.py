"""The files of the page at `/`, read once when the service starts: no path of a request reaches the file system."""

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

INDEX = "index.html"
MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "png": "image/png",
    "json": "application/json",
    "webmanifest": "application/manifest+json",
}
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


def page_routes() -> list[Route]:
    """Return a route for each file of the page: `index.html` at `/`, the others at `/page/NAME`."""
    found = dict(_contents(files("metalad.service") / "page", "page"))
    # The pages of results contain the same function as plain script; here it is a module.
    shared = files("metalad.results.pages") / "templates" / "csv.js"
    found["page/csv.js"] = shared.read_bytes() + b"\nexport { saveCsv };\n"
    return [_route("/" if path == f"page/{INDEX}" else f"/{path}", content) for path, content in found.items()]


def _contents(folder: Traversable, path: str) -> Mapping[str, bytes]:
    if not folder.is_dir():
        return {}
    contents: dict[str, bytes] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = f"{path}/{entry.name}"
        if entry.is_dir():
            contents |= _contents(entry, name)
        elif entry.name.rpartition(".")[2] in MEDIA_TYPES:
            contents[name] = entry.read_bytes()
    return contents


def _route(path: str, content: bytes) -> Route:
    kind = MEDIA_TYPES["html" if path == "/" else path.rpartition(".")[2]]
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", **SECURITY}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    return Route(path, answer, methods=["GET"])
