"""A shard as a task: processed in any process, on any machine, into files that all of them can access."""

import contextlib
import os
import traceback
from functools import lru_cache
from pathlib import Path
from typing import Any

from metalad.data.content import file_hash
from metalad.data.video import decoded_in_order
from metalad.inference.stream import Predictor, Threads, infer_stream
from metalad.pipelines.predict.journal import Plan, Shard, ShardFile
from metalad.pipelines.predict.saving import Writer
from metalad.pipelines.predict.sources import Source
from metalad.runtime.errors import MetaladError, ModelFileError
from metalad.runtime.tasks import Task
from metalad.storage.opening import open_model

ANSWER = "metalad.pipelines.predict.shards:answer"
GPU_WORKERS = 4
"""Minimum of threads beside a GPU, which would otherwise wait for images to be decoded."""


def task_of(shard: Shard, plan: Plan, model: Path, out: Path, device: str, workers: int) -> dict[str, Any]:
    """Return a shard as plain data, with absolute paths; `workers` threads will process it."""
    return {
        "shard": shard.number,
        "file": os.path.abspath(shard.file),  # noqa: PTH100 (keeps links)
        "sources": [[os.path.abspath(source.path), source.name] for source in shard.sources],  # noqa: PTH100
        "model": os.path.abspath(model),  # noqa: PTH100
        "out": os.path.abspath(out),  # noqa: PTH100
        "plan": vars(plan),
        "device": device,
        "workers": workers,
    }


def answer(task: Task) -> dict[str, Any]:
    """Process the images of a shard that have no stored result; `metalad.runtime.tasks` calls this in the worker.

    A user's error is returned as data, and so is a bug, with its traceback.
    """
    try:
        _process(task)
        return {}
    except MetaladError as error:
        return {"error": error.to_json()}
    except Exception:
        return {"bug": traceback.format_exc()}


def _process(task: Task) -> None:
    plan, sources = Plan(**task["plan"]), [Source(Path(path), name) for path, name in task["sources"]]
    writer = Writer.of(plan, Path(task["out"]))
    predictor = _predictor(Path(task["model"]), task["device"], plan, writer)
    on_cpu = predictor.engine.device_type == "cpu"
    threads = Threads(task["workers"] if on_cpu else max(task["workers"], GPU_WORKERS), plan.torch_threads)
    with contextlib.closing(ShardFile(Path(task["file"]))) as file:
        left = decoded_in_order(sources[len(file.stored) :], lambda source: source.path)
        for result in infer_stream(predictor, left, writer.load, writer.write, threads):
            file.append(result)


@lru_cache(maxsize=1)
def _predictor(model: Path, device: str, plan: Plan, writer: Writer) -> Predictor:
    if file_hash(model) != plan.model:
        raise ModelFileError(f"{model}: another model replaced it during predict; start again without --resume")
    return writer.predictor(open_model(model, device).engine, plan.batch_size)
