"""`/v1/feedback`: put a picture aside as good or as a defect, or take it back."""

import asyncio
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from metalad.runtime.errors import RunError
from metalad.runtime.progress import logger
from metalad.service.feedback import LABELS, Feedback, FeedbackStore, Label
from metalad.service.predictions import CLIENT_CLOSED, Predictions, wanted_threshold
from metalad.service.problems import Problem
from metalad.service.scoring import Wanted

Answer = TypeVar("Answer")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def feedback_routes(folder: Path, predictions: Predictions) -> list[Route]:
    """Open the store of marked pictures, and return the routes of its endpoint.

    Raises:
        ConfigError: the name of a model is no name of a folder. RunError: the folder cannot be used.
    """
    endpoint = FeedbackEndpoint(FeedbackStore(folder, predictions.registry.served), predictions)
    return [
        Route("/v1/feedback", endpoint.mark, methods=["POST"]),
        Route("/v1/feedback", endpoint.take_back, methods=["DELETE"]),
        Route("/v1/feedback", endpoint.counts, methods=["GET"]),
    ]


@dataclass(frozen=True)
class FeedbackEndpoint:
    """The endpoint: the pictures are scored as those of `POST /v1/predict`, within the same limits."""

    store: FeedbackStore
    predictions: Predictions

    async def mark(self, request: Request) -> Response:
        """Store one picture with a label, and its score.

        `threshold` is the one that the person saw, and `hash` that of the model that the person saw a score of.

        Raises:
            Problem: there is no such model or label, the model has another hash (409), more than one image, or it
                cannot be scored.
        """
        served = self.predictions.registry.get(request.query_params.get("model"))
        if request.query_params.get("hash", served.hash) != served.hash:
            raise Problem(409, "the service has loaded another version of the model; score the picture again")
        label = _label(request.query_params.get("label"))
        threshold = wanted_threshold(request.query_params.get("threshold"))
        wanted = Wanted(threshold, frozenset(), None, self.predictions.settings.max_pixels)
        try:
            uploads, scored = await self.predictions.scored(request, served, wanted)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED)
        if len(uploads) != 1:
            raise Problem(422, f"the request has {len(uploads)} images; send one for each label")
        (one,) = scored
        if one.score is None:
            raise Problem(one.status, one.error or "the image cannot be scored")
        add = functools.partial(self.store.add, served.name, uploads[0].content, label, one.score, one.threshold)
        row = await _stored(add)
        return _json(dataclasses.asdict(row))

    async def take_back(self, request: Request) -> Response:
        """Delete a picture that was stored.

        Raises:
            Problem: there is no such model or picture.
        """
        served = self.predictions.registry.get(request.query_params.get("model"))
        sha256 = request.query_params.get("sha256", "")
        if not _SHA256.fullmatch(sha256):
            raise Problem(422, "sha256 must be the 64 hexadecimal digits that the service answered")
        if not await _stored(functools.partial(self.store.remove, served.name, sha256)):
            raise Problem(404, "no such picture is stored for this model")
        return _json({"sha256": sha256, "label": None})

    async def counts(self, _: Request) -> Response:
        """Answer how many pictures of each label are stored, for each model."""
        rows = await _stored(self.store.rows)
        return _json({name: _counted(rows, name) for name in self.predictions.registry.served})


async def _stored(work: Callable[[], Answer]) -> Answer:
    """Return what the store answers; an error of the disk is in the log, as it names folders of this computer."""
    try:
        return await asyncio.to_thread(work)
    except RunError as error:
        logger.error("feedback: %s", error)
        raise Problem(507, "the feedback cannot be stored; the log of the service states the reason") from error


def _counted(rows: Sequence[Feedback], model: str) -> dict[str, int]:
    return {label: sum(row.model == model and row.label == label for row in rows) for label in LABELS}


def _label(text: str | None) -> Label:
    for label in LABELS:
        if text == label:
            return label
    raise Problem(422, f"add ?label= with one of {' and '.join(LABELS)}")


def _json(values: object) -> Response:
    return Response(json.dumps(values) + "\n", headers={"Cache-Control": "no-store"}, media_type="application/json")
