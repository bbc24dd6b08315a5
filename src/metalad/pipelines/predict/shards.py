"""A shard as a task: judged in whatever process, on whatever machine, into files that all of them see."""

import contextlib
import hashlib
import os
import traceback
from functools import lru_cache
from pathlib import Path
from typing import Any

from metalad.pipelines.predict.journal import Plan, Shard, ShardFile
from metalad.pipelines.predict.pipeline import Crew, Judge, Writer, predict_sources, reason_of
from metalad.pipelines.predict.sources import Source
from metalad.runtime.errors import ImageError, MetaladError, ModelFileError
from metalad.runtime.tasks import Task
from metalad.storage.model_file import read_model
from metalad.training.device import choose_device

ANSWER = "metalad.pipelines.predict.shards:answer"
GPU_WORKERS = 4
"""Threads beside a GPU at least, or it would wait for images to be decoded."""


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def task_of(shard: Shard, plan: Plan, model: Path, out: Path, device: str, workers: int) -> dict[str, Any]:
    """Return a shard as plain data, with absolute paths; `workers` threads are to judge it."""
    return {
        "shard": shard.number,
        "file": os.path.abspath(shard.file),  # noqa: PTH100 (links stay, as elsewhere)
        "sources": [[os.path.abspath(source.path), source.name] for source in shard.sources],  # noqa: PTH100
        "model": os.path.abspath(model),  # noqa: PTH100
        "out": os.path.abspath(out),  # noqa: PTH100
        "plan": vars(plan),
        "device": device,
        "workers": workers,
    }


def answer(task: Task) -> dict[str, Any]:
    """Judge the images of a shard that are not in its file yet: what `metalad.runtime.tasks` calls elsewhere.

    An error of the user's is part of the answer, and so is a mistake of ours, with its traceback.
    """
    try:
        return _scored(task)
    except MetaladError as error:
        return {"error": type(error).__name__, "text": str(error)}
    except Exception:
        return {"bug": traceback.format_exc()}


def _scored(task: Task) -> dict[str, Any]:
    plan, sources = Plan(**task["plan"]), [Source(Path(path), name) for path, name in task["sources"]]
    judge = _judge(Path(task["model"]), task["device"], plan)
    writer = Writer(Path(task["out"]), plan.threshold, plan.strict, plan.maps, plan.overlays)
    workers = task["workers"] if judge.detector.device.type == "cpu" else max(task["workers"], GPU_WORKERS)
    with contextlib.closing(ShardFile(Path(task["file"]))) as file:
        left, done = sources[len(file.found) :], 0
        try:
            for result in predict_sources(judge, left, writer, Crew(workers, plan.torch_threads)):
                file.append(result)
                done += 1
        except ImageError as error:
            return {"error": "ImageError", "text": reason_of(error, left[done].path)}
    return {}


@lru_cache(maxsize=1)
def _judge(model: Path, device: str, plan: Plan) -> Judge:
    if digest_of(model) != plan.model:
        raise ModelFileError(f"{model}: replaced by another while images were judged; begin anew without --resume")
    return Judge(read_model(model, str(choose_device(device))).detector, plan.scoring, plan.threshold, plan.batch_size)
