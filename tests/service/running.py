"""A real service on a free port, in a thread of this process."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

import metalad
from metalad.service.application import create_application
from metalad.service.settings import Settings


@dataclass
class Served:
    """A running service: its address, model and feedback folder, and the most predictions that ran at once."""

    url: str
    model: metalad.Model
    keep: Path | None
    most: int = 0
    running: int = field(default=0, repr=False)

    def counted(self, application: Any) -> Any:
        async def observed(scope: Any, receive: Any, send: Any) -> None:
            counts = scope.get("path") == "/v1/predict"
            self.running += counts
            self.most = max(self.most, self.running)
            try:
                await application(scope, receive, send)
            finally:
                self.running -= counts

        return observed


@contextlib.contextmanager
def running(application: Any, listener: socket.socket) -> Iterator[None]:
    config = uvicorn.Config(application, log_config=None, ws="none", lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@contextlib.contextmanager
def serving(
    model: metalad.Model,
    keep: Path | None,
    token: str | None = None,
    names: tuple[str, ...] = ("tiny",),
    reload: float = 2.0,
) -> Iterator[Served]:
    """Serve a model under each of the names, on a free port, in a thread of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    served = Served(f"http://127.0.0.1:{listener.getsockname()[1]}/", model, keep)
    models = tuple(f"{name}={model.path}" for name in names)
    settings = Settings(models=models, keep_feedback=keep, token=token, reload=reload)
    with running(served.counted(create_application(settings)), listener):
        yield served
