"""The ASGI application of the service.

`create_application(Settings(models=("bottle=runs/bottle",)))` returns it; the tests drive it with Starlette's client.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from metalad.data.formats import IMAGE_SUFFIXES
from metalad.inference.stream import Threads
from metalad.runtime.progress import logger
from metalad.service.description import DOCS_POLICY, docs_page, openapi
from metalad.service.guard import Guard, Tally
from metalad.service.memory import trim
from metalad.service.metrics import Metrics
from metalad.service.models import Registry
from metalad.service.pool import Slots, WorkerPool
from metalad.service.predictions import Predictions
from metalad.service.problems import Problem, answer_bug, answer_http_exception, answer_problem
from metalad.service.settings import Settings
from metalad.service.static import SECURITY, page_routes

OPEN = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs"})
"""Paths that need no token, besides the files of the page: they hold nothing of this installation."""
GPU_THREADS = 32
"""Worker threads beside a GPU: two batches."""


def create_application(settings: Settings, registry: Registry | None = None) -> Starlette:
    """Load the models and return the application; its worker threads start and end with its lifespan.

    Raises:
        ConfigError: two models have the same name, or there is no such device. ModelFileError: no usable model.
    """
    registry = registry or Registry.load(settings.models, settings.device)
    service = Service(settings, registry)
    page = page_routes()
    routes: list[BaseRoute] = [*service.routes(), *page]
    open_paths = OPEN | {path_of(route) for route in page}
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(
                Guard,
                settings=settings,
                metrics=service.metrics,
                paths=frozenset(path_of(route) for route in routes),
                open_paths=open_paths,
                tally=service.tally,
            )
        ],
        exception_handlers={Problem: answer_problem, HTTPException: answer_http_exception, Exception: answer_bug},
        lifespan=service.lifespan,
    )


def path_of(route: BaseRoute) -> str:
    """Return the path of a route; none of the service has parameters."""
    assert isinstance(route, Route)
    return route.path


class Service:
    """The endpoints and what they share."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self.settings, self.registry = settings, registry
        self.metrics, self.tally = Metrics(), Tally()
        processors, threads = _threads(registry)
        self.pool = WorkerPool(threads)
        self.slots = Slots(settings.queue, settings.max_queue_bytes, processors, settings.timeout / 2)
        self.metrics.limit.set(settings.queue)
        self.metrics.slots.set_function(lambda: self.slots.taken)
        self.metrics.watch(registry)
        self.predictions = Predictions(
            settings, registry, self.pool, self.slots, self.metrics, threading.Semaphore(processors)
        )
        self.is_ready = False

    def routes(self) -> list[BaseRoute]:
        """Return the routes of the API."""
        feedback: list[BaseRoute] = []
        if self.settings.keep_feedback is not None:
            from metalad.service.feedback_routes import feedback_routes

            feedback.extend(feedback_routes(self.settings.keep_feedback, self.predictions))
        return [
            *feedback,
            Route("/v1/predict", self.predictions.answer, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/healthz", self.health, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/metrics", self.measurements, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/docs", self.docs, methods=["GET"]),
        ]

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Start the worker threads and the task that checks the models' files, and end them."""
        upkeep = asyncio.create_task(self._upkeep())
        try:
            self.pool.start()
            self.is_ready = True
            yield
        finally:
            self.is_ready = False
            upkeep.cancel()
            self.pool.close()
            tally = self.tally
            logger.info(
                "stopped: %d requests accepted, %d answered, %d closed by the client",
                *(tally.accepted, tally.answered, tally.closed),
            )

    async def _upkeep(self) -> None:
        before = (0, 0)
        while True:
            await asyncio.sleep(self.settings.reload)
            try:
                await asyncio.to_thread(self.registry.check_files)
            except Exception:
                logger.exception("the model files could not be checked")
            now = (self.tally.accepted, self.tally.answered)
            if now != before:
                before = now
                await asyncio.to_thread(trim)

    async def models(self, _: Request) -> Response:
        """Describe the models and the limits."""
        values = {
            "models": [served.to_dict() for served in self.registry.served.values()],
            "limits": {
                "bytes": self.settings.max_bytes,
                "pixels": self.settings.max_pixels,
                "images": self.settings.max_images,
                "queue": self.settings.queue,
                "seconds": self.settings.timeout,
            },
            "suffixes": sorted(IMAGE_SUFFIXES),
            "feedback": self.settings.keep_feedback is not None,
        }
        return _json(values)

    async def health(self, _: Request) -> Response:
        """Answer that the process runs."""
        return _json({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """Answer whether requests are taken."""
        if not self.is_ready:
            raise Problem(503, "the service starts or stops", headers={"Retry-After": "1"})
        return _json({"status": "ready"})

    async def measurements(self, _: Request) -> Response:
        """Return the metrics for Prometheus."""
        text, kind = self.metrics.text()
        return Response(text, headers={"Content-Type": kind})

    async def openapi(self, _: Request) -> Response:
        """Return the OpenAPI description."""
        return _json(openapi(self.settings))

    async def docs(self, _: Request) -> Response:
        """Return the description as a page."""
        headers = {**SECURITY, "Content-Security-Policy": DOCS_POLICY}
        return Response(docs_page(openapi(self.settings)), headers=headers, media_type="text/html")


def _threads(registry: Registry) -> tuple[int, int]:
    """Return how many threads compute at once, and how many worker threads there are."""
    engines = [served.model.engine for served in registry.served.values()]
    processors = max(Threads.of(engine).workers for engine in engines)
    on_gpu = any(engine.device_type != "cpu" for engine in engines)
    return processors, processors + GPU_THREADS if on_gpu else processors


def _json(values: object) -> Response:
    text = json.dumps(values, allow_nan=False) + "\n"
    return Response(text, headers={"Cache-Control": "no-store"}, media_type="application/json")
