"""Starlette's client of the application, without a network."""

import base64
import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metalad.service.application import create_application
from metalad.service.settings import Settings

__all__ = ["TOKEN", "TestClient", "as_json", "client_of", "png"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it prefers another package to httpx
    from starlette.testclient import TestClient

TOKEN = "a-token-of-24-characters"


@contextlib.contextmanager
def client_of(path: Path, **settings: Any) -> Iterator[TestClient]:
    """Serve a model file under the name `tiny`."""
    models = settings.pop("models", (f"tiny={path}",))
    application = create_application(Settings(models=models, **settings))
    with TestClient(application, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def png(picture: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, kind, **options)
    return data.getvalue()


def as_json(*contents: bytes, names: tuple[str, ...] | None = None) -> Mapping[str, Any]:
    """Return the keywords of a request with JSON."""
    texts: list[Any] = [base64.b64encode(content).decode() for content in contents]
    if names is not None:
        texts = [{"name": name, "content": text} for name, text in zip(names, texts, strict=True)]
    return {"content": json.dumps({"images": texts}), "headers": {"Content-Type": "application/json"}}
