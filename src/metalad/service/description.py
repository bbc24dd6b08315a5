"""The OpenAPI description of the service, and a page made from it that works without a network."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import metalad
from metalad.service.problems import MEDIA_TYPE
from metalad.service.settings import Settings

Object = dict[str, Any]

BOX = {"type": "array", "items": {"type": "integer"}, "description": "left, top, width and height in pixels"}
SCHEMAS: Object = {
    "Region": {
        "type": "object",
        "required": ["box", "area", "peak_score", "polygon"],
        "properties": {
            "box": BOX,
            "area": {"type": "integer", "description": "number of pixels"},
            "peak_score": {"type": "number", "description": "maximum of the anomaly map inside"},
            "polygon": {
                "type": "array",
                "items": {"type": "array", "items": {"type": "number"}},
                "description": "outer boundary as x, y from the outer edge of the image's first pixel",
            },
        },
    },
    "Result": {
        "type": "object",
        "description": "One image: its score and regions, or `error` and `status` where it cannot be scored.",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "description": "as the client gave it"},
            "score": {"type": "number", "description": "image score; higher = more anomalous"},
            "threshold": {"type": "number", "description": "the score above which an image is anomalous"},
            "is_anomalous": {"type": "boolean"},
            "height": {"type": "integer"},
            "width": {"type": "integer"},
            "regions": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/Region"},
                "description": "connected parts of the image above the threshold, the highest peak first, at most 100; "
                "those with fewer than 1/10,000 of the image's pixels are left out, except the first",
            },
            "caution": {"type": "string", "description": "severity of the model's caution about its own threshold"},
            "notes": {
                "type": "array",
                "items": {"type": "string"},
                "description": "what was read differently than it is stored",
            },
            "overlay": {"type": "string", "description": "JPEG in a data: address, with include=overlay"},
            "map": {
                "type": "string",
                "description": (
                    "gray PNG in a data: address, with include=map: 104 + 24 log2(map / threshold), "
                    "so that exactly the pixels above the threshold are above 104"
                ),
            },
            "input": {"type": "string", "description": "JPEG in a data: address, with include=input"},
            "error": {"type": "string", "description": "why the image cannot be scored"},
            "status": {"type": "integer", "description": "of the answer if this image were alone"},
        },
    },
    "Prediction": {
        "type": "object",
        "required": ["model", "hash", "results"],
        "properties": {
            "model": {"type": "string"},
            "hash": {"type": "string", "description": "SHA-256 of the model file"},
            "results": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/Result"},
                "description": "one for each image, in the order of the request",
            },
        },
    },
    "Model": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "method": {"type": "string"},
            "category": {"type": "string"},
            "image_size": {"type": "array", "items": {"type": "integer"}, "description": "height and width in pixels"},
            "images": {"type": "integer", "description": "number of good training images"},
            "threshold": {"type": "number"},
            "false_alarms": {"type": "number", "description": "the rate that the threshold is set for"},
            "scoring": {"type": "string"},
            "out_of_fold_scores": {
                "type": "array",
                "items": {"type": "number"},
                "description": "scores of good images that the threshold is computed from",
            },
            "caution": {"type": ["object", "null"], "description": "why the threshold cannot be relied on"},
            "hash": {"type": "string", "description": "SHA-256 of the model file"},
            "training_hash": {"type": "string", "description": "SHA-256 of the training images"},
            "versions": {"type": "object"},
            "device": {"type": "string"},
            "loaded": {"type": "string", "format": "date-time"},
            "error": {"type": ["string", "null"], "description": "why a newer file of the model is not in service"},
        },
    },
    "Models": {
        "type": "object",
        "properties": {
            "models": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
            "limits": {"type": "object", "description": "bytes, pixels, images of a request; queue; seconds"},
            "suffixes": {"type": "array", "items": {"type": "string"}, "description": "of readable image files"},
            "feedback": {"type": "boolean", "description": "whether feedback is stored"},
        },
    },
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "one sentence that states the reason"},
        },
    },
}
PROBLEMS: Mapping[int, str] = {
    400: "The request is not valid HTTP, or its form or JSON is damaged.",
    401: "The token is missing or wrong.",
    403: "A page of another site sent the request.",
    404: "There is no such model.",
    406: "No type of answer in `Accept` is supported, or a picture of several images is wanted.",
    408: "The request did not arrive in time.",
    409: "The service has loaded another version of the model than the one of the parameter `hash`.",
    413: "The body is too long, an image has too many pixels, or there are too many images.",
    415: "The type of the body is not supported, or the body is compressed.",
    421: "Without a token the service answers only requests to localhost.",
    422: "No image can be scored, or a parameter has an impossible value.",
    429: "The queue is full; `Retry-After` gives the seconds to wait.",
    503: "There is not enough memory for the image.",
    504: "The answer took too long.",
    507: "The feedback cannot be stored.",
}
GENERAL = (401, 403, 421)


def openapi(settings: Settings) -> Object:
    """Return the description in the format OpenAPI 3.1."""
    secured: Object = {"security": [{"token": []}]} if settings.token is not None else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "metalad",
            "version": metalad.__version__,
            "description": "Score images with trained models: which are anomalous, and where.",
        },
        "paths": {
            "/v1/predict": {"post": _predict(settings) | secured},
            "/v1/models": {"get": _get("The models in service, and the limits.", "Models", *GENERAL) | secured},
            **({} if settings.keep_feedback is None else {"/v1/feedback": _feedback(secured)}),
            "/healthz": {"get": _get("The process runs.", None)},
            "/readyz": {"get": _get("Requests are taken.", None)},
            "/metrics": {"get": _plain("Metrics in the text format of Prometheus.", "text/plain") | secured},
            "/openapi.json": {"get": _get("This description.", None)},
            "/docs": {"get": _plain("This description as a page.", "text/html")},
        },
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _predict(settings: Settings) -> Object:
    file = {"type": "string", "format": "binary"}
    item = {"type": "object", "properties": {"name": {"type": "string"}, "content": {"type": "string"}}}
    images = {"type": "array", "items": {"oneOf": [{"type": "string"}, item]}, "description": "contents in base64"}
    return {
        "summary": "Score the images of a request.",
        "description": (
            f"At most {settings.max_images} images, {settings.max_bytes:,} bytes, {settings.max_pixels:,} pixels an "
            "image. The score of an image is that of `metalad predict` for its file. Where some of several images "
            "cannot be scored, their results have `error`; where none can, the answer is a problem."
        ),
        "parameters": [
            _parameter("model", "string", "name of a model; needed where several are served"),
            _parameter("threshold", "number", "the score above which an image is anomalous; by default the model's"),
            _parameter("include", "string", "list of `overlay`, `map` and `input`: pictures to add to each result"),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": file},
                "application/octet-stream": {"schema": file},
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": {"file": {"type": "array", "items": file}}}
                },
                "application/json": {"schema": {"type": "object", "properties": {"images": images}}},
            },
        },
        "responses": {
            "200": {
                "description": "A result for each image, or the overlay of one image, by the header `Accept`.",
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Prediction"}},
                    "image/png": {"schema": file},
                    "image/jpeg": {"schema": file},
                },
            },
            **_problems(*(status for status in PROBLEMS if status not in (409, 507))),
        },
    }


def _feedback(secured: Object) -> Object:
    model = _parameter("model", "string", "name of a model; needed where several are served")
    label = _parameter("label", "string", "`good` or `defect`") | {"required": True}
    sha256 = _parameter("sha256", "string", "of the content, as `POST` answered it") | {"required": True}
    threshold = _parameter("threshold", "number", "that the person saw; the model's by default")
    version = _parameter("hash", "string", "of the model whose score the person saw; another one is refused")
    mark = _get("Score one picture, and store it with a label; an earlier label is replaced.", None, *PROBLEMS)
    body = {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
    return {
        "post": mark | {"parameters": [model, label, threshold, version], "requestBody": body} | secured,
        "delete": _get("Delete a stored picture.", None, *GENERAL, 404, 422, 507)
        | {"parameters": [model, sha256]}
        | secured,
        "get": _get("How many pictures of each label are stored for each model.", None, *GENERAL, 507) | secured,
    }


def _parameter(name: str, kind: str, description: str) -> Object:
    return {"name": name, "in": "query", "schema": {"type": kind}, "description": description}


def _get(summary: str, schema: str | None, *statuses: int) -> Object:
    shape: Object = {"$ref": f"#/components/schemas/{schema}"} if schema else {"type": "object"}
    answer = {"description": summary, "content": {"application/json": {"schema": shape}}}
    return {"summary": summary, "responses": {"200": answer, **_problems(*statuses)}}


def _plain(summary: str, kind: str) -> Object:
    return {"summary": summary, "responses": {"200": {"description": summary, "content": {kind: {}}}}}


def _problems(*statuses: int) -> Object:
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": PROBLEMS[status], "content": content} for status in statuses}


def docs_page(description: Object) -> str:
    """Return a description as an HTML page without scripts and without references to other files."""
    info = description["info"]
    parts = [
        f"<h1>{_text(info['title'])} {_text(info['version'])}</h1><p>{_text(info['description'])} ",
        '<a href="/openapi.json">OpenAPI description</a> · <a href="/">page</a></p>',
        *(
            _operation(path, method, operation)
            for path, operations in description["paths"].items()
            for method, operation in operations.items()
        ),
        "<h2>Schemas</h2>",
        *(_schema(name, schema) for name, schema in description["components"]["schemas"].items()),
    ]
    return PAGE.replace("BODY", "\n".join(parts))


def _operation(path: str, method: str, operation: Object) -> str:
    rows = [(parameter["name"], parameter["description"]) for parameter in operation.get("parameters", ())]
    bodies = ", ".join(operation.get("requestBody", {}).get("content", ()))
    answers = [(status, answer["description"]) for status, answer in operation["responses"].items()]
    token = " Needs the token." if operation.get("security") else ""
    return "".join(
        (
            f"<h2><code>{method.upper()} {_text(path)}</code></h2><p>{_text(operation['summary'])}{token}</p>",
            f"<p>{_text(operation['description'])}</p>" if "description" in operation else "",
            _table("Parameter", rows) if rows else "",
            f"<p>Body: <code>{_text(bodies)}</code></p>" if bodies else "",
            _table("Answer", answers),
        )
    )


def _schema(name: str, schema: Object) -> str:
    rows = list(_properties(schema))
    return f'<h3 id="{_text(name)}">{_text(name)}</h3>' + _table("Member", rows)


def _properties(schema: Object) -> Iterator[tuple[str, str]]:
    for name, value in schema["properties"].items():
        item = value.get("items", {}).get("$ref", "").rpartition("/")[2]
        kind = f"list of {item}" if item else json.dumps(value.get("type")).replace('"', "")
        yield name, f"{kind}. {value.get('description', '')}".removesuffix(". ")


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><th scope=row><code>{_text(left)}</code></th><td>{_text(right)}</td></tr>" for left, right in rows
    )
    head = f"<tr><th scope=col>{title}</th><th scope=col>Meaning</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{cells}</tbody></table>"


def _text(text: str) -> str:
    """Return a text as HTML; what is between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(text)))


STYLE = """
:root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h2{margin-top:2.5rem;font-size:1.2rem}table{border-collapse:collapse;width:100%;margin:.7rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #8884}
th[scope=row]{width:min(12rem,35%);overflow-wrap:anywhere}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
DOCS_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; frame-ancestors 'none'"
"""Content security policy of the page: its style, and nothing else."""
PAGE = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>metalad: HTTP interface</title><style>{STYLE}</style></head>
<body><main>BODY</main></body>
</html>
"""
