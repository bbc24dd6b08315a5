"""Run one job: train, or resume training, evaluate, and return its result row."""

import contextlib
import dataclasses
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from metalad.data import data_hash, read_category
from metalad.detectors.base import DetectorConfig
from metalad.methods import method_named
from metalad.pipelines.benchmark.job import Failure, Job
from metalad.pipelines.benchmark.machine import PACKAGES, machine, peak_memory, reset_peak_memory
from metalad.pipelines.benchmark.rows import ResultRow
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.resolution import is_automatic_for, resized, sizes_of, without_automatic_size
from metalad.pipelines.train import train
from metalad.results.report import Report
from metalad.runtime.errors import MetaladError
from metalad.runtime.files import write_json, write_text
from metalad.runtime.settings import from_json, from_texts
from metalad.runtime.versions import versions
from metalad.storage.model_file import StoredModel
from metalad.training.device import choose_device

MAX_LOSSES = 50
"""A row contains about this many losses of a training."""

Finish = Callable[[Job, StoredModel, Report], None]
"""Called after the evaluation of a job, before its row is returned."""


def run_job_json(values: Mapping[str, Any], *, progress: bool = False) -> dict[str, Any]:
    """Run a job given as JSON values, and return its result as JSON values; worker processes call this function."""
    return run_job(Job.from_json(values), progress=progress).to_json()


def run_job(job: Job, *, progress: bool = False, finish: Finish | None = None) -> ResultRow | Failure:
    """Run the job; every exception becomes a `Failure`, so that other jobs can continue."""
    try:
        return _execute(job, progress, finish)
    except MetaladError as error:
        return Failure(str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        with contextlib.suppress(MetaladError):
            file = Path(job.work) / "error.txt"
            write_text(file, "".join(traceback.format_exception(error)))
            reason += f"; see {file}"
        return Failure(" ".join(reason.split()))


def _execute(job: Job, progress: bool, finish: Finish | None) -> ResultRow:
    config = _config(job)
    device = choose_device(job.device)
    with _threads(job.threads):  # the last bits of a result depend on the number of threads
        if job.cell.category is None:
            detector = method_named(job.cell.configuration.method).load()(config)
            return _row(job, config, device, parameters=_parameters(detector), cost=_cost())
        return _train_and_evaluate(job, config, device, progress, finish)


def _config(job: Job) -> DetectorConfig:
    kind = method_named(job.cell.configuration.method).load_config()
    if job.config is not None:
        return from_json(kind, job.config)
    method, texts = job.cell.configuration.method, job.cell.configuration.settings
    config = from_texts(kind, without_automatic_size(texts))
    if job.data is None or not is_automatic_for(method, texts, job.cell.protocol):
        return config
    return resized(config, sizes_of(read_category(Path(job.data), seed=job.cell.seed).train))[0]


def _train_and_evaluate(
    job: Job, config: DetectorConfig, device: torch.device, progress: bool, finish: Finish | None
) -> ResultRow:
    cell, data, work = job.cell, Path(job.data or ""), Path(job.work)
    category = read_category(data, seed=cell.seed)
    hashes = {
        "train": data_hash(category.train),
        "test": data_hash(category.test),
        "all": data_hash((*category.train, *category.test)),
    }
    log = _WorkLog(work, {"job": job.to_json(), "versions": versions(PACKAGES), "data": hashes, "torch": str(device)})
    reset_peak_memory()
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # resetting the peak fails before initialization
        torch.cuda.reset_peak_memory_stats(device)
    with log.training():
        model = train(
            data,
            work / "run",
            method=config,
            protocol=cell.protocol,
            seed=cell.seed,
            epochs=cell.epochs,
            resume=True,
            device=job.device,
            precision="fp32",  # for the same numbers on every machine
            progress=progress,
        ).stored
    start = time.perf_counter()
    report = evaluate(work / "run", data, out=work / "evaluation", device=job.device, progress=progress)
    evaluating = time.perf_counter() - start
    if finish is not None:
        finish(job, model, report)
    return _row(
        job,
        config,
        device,
        data={**hashes, **_counts(model, report)},
        training={**model.header.training, **_epochs(work, model.header.training["stages"])},
        parameters=_parameters(model.detector),
        metrics=_metrics(report),
        cost=_cost(log.seconds, evaluating, log.sessions, _gpu_memory(device)),
    )


def _gpu_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _row(job: Job, config: DetectorConfig, device: torch.device, **values: Any) -> ResultRow:
    cell = job.cell
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return ResultRow(
        suite=job.suite,
        key=cell.key,
        name=cell.name,
        method=cell.configuration.method,
        settings=cell.configuration.settings,
        config=dataclasses.asdict(config),
        category=cell.category,
        seed=cell.seed,
        protocol=cell.protocol,
        epochs=cell.epochs,
        commit=job.commit,
        machine=machine(gpu),
        versions=versions(PACKAGES),
        device=device.type,
        threads=job.threads,
        **{"data": {}, "training": {}, "metrics": {}, **values},
    )


def _counts(model: StoredModel, report: Report) -> dict[str, int]:
    return {**model.header.images, "evaluated": len(report.images), "evaluated_skipped": len(report.skipped)}


def _parameters(detector: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in detector.parameters())


def _metrics(report: Report) -> dict[str, Any]:
    return {
        scoring["name"]: {
            "threshold": scoring["threshold"],
            "model": scoring["metrics_model"],
            "original": scoring["metrics_original"],
            "confusion": scoring["confusion"],
            "per_defect": {
                row["defect"]: {
                    "images": row["images"],
                    "found": row["found"],
                    "model": row["metrics"],
                    "original": row["metrics_original"],
                }
                for row in scoring["per_defect"]
            },
        }
        for scoring in report.to_json()["scorings"]
    }


def _epochs(work: Path, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the number of trained epochs and the epoch selected in the last stage; {} without gradient descent."""
    history = _history(work)
    if not history:
        return {}
    last = [row for row in history if row["stage"] == history[-1]["stage"]]
    keeps_last = stages[history[-1]["stage"]]["keep"] == "last"
    selected = last[-1] if keeps_last else min(last, key=lambda row: float(row["validation_loss"]))
    return {
        "epochs": len(history),
        "kept_epoch": selected["epoch"],
        "validation_loss": selected["validation_loss"],
        "losses": _subsampled(last),
    }


def _subsampled(history: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    """Return (epoch, training loss, validation loss) of about fifty evenly spaced epochs, and of the last epoch."""
    step = max(1, len(history) // MAX_LOSSES)
    selected = [*history[step - 1 : -1 : step], history[-1]]
    return [(row["epoch"], round(row["training_loss"], 6), round(row["validation_loss"], 6)) for row in selected]


def _history(work: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (work / "run" / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _cost(train: float = 0.0, evaluating: float = 0.0, sessions: int = 1, gpu: int | None = None) -> dict[str, Any]:
    return {
        "train_seconds": round(train, 3),
        "evaluate_seconds": round(evaluating, 3),
        "peak_memory": peak_memory(),
        "peak_gpu_memory": gpu,
        "sessions": sessions,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


class _WorkLog:
    """The state of a work folder over several sessions: its inputs, the number of sessions, the training time.

    A folder that was started with other code, data or threads is emptied: mixed results would not be reproducible.
    """

    def __init__(self, work: Path, inputs: Mapping[str, Any]) -> None:
        self._work, self._file = work, work / "state.json"
        self._inputs = json.loads(json.dumps(inputs))
        state = self._stored()
        if state.get("inputs") != self._inputs:
            shutil.rmtree(work, ignore_errors=True)
            state = {}
        self.sessions: int = state.get("sessions", 0) + 1
        self._train_seconds: float | None = state.get("train_seconds")
        self._write()

    @property
    def seconds(self) -> float:
        """Seconds of training; after an interruption, at least those of the epochs in the history."""
        return self._train_seconds or 0.0

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Time the block, unless training was completed in an earlier session."""
        start = time.perf_counter()
        yield
        if self._train_seconds is None:
            history = _history(self._work)
            in_epochs = float(history[-1]["seconds"]) if history else 0.0
            self._train_seconds = max(time.perf_counter() - start, in_epochs)
            self._write()

    def _stored(self) -> dict[str, Any]:
        try:
            state = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _write(self) -> None:
        state = {"inputs": self._inputs, "sessions": self.sessions, "train_seconds": self._train_seconds}
        write_json(self._file, state)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
