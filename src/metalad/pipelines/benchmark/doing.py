"""Do one job: train, or go on with training, evaluate, and return its row."""

import contextlib
import dataclasses
import json
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from metalad.data import data_hash, read_category
from metalad.detectors.base import DetectorConfig
from metalad.methods import method_named
from metalad.pipelines.benchmark.examples import draw_examples
from metalad.pipelines.benchmark.job import Failure, Job
from metalad.pipelines.benchmark.machine import PACKAGES, machine, peak_memory, reset_peak_memory
from metalad.pipelines.benchmark.rows import Row
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.train import train
from metalad.results.report import Report
from metalad.runtime.errors import MetaladError
from metalad.runtime.files import write_json, write_text
from metalad.runtime.settings import from_json, from_texts
from metalad.runtime.versions import versions
from metalad.storage.model_file import Model
from metalad.training.device import choose_device

MOST_LOSSES = 50
"""About so many losses of a training are kept in a row."""


def attempt(job: Job, *, progress: bool = False) -> Row | Failure:
    """Do the job; whatever goes wrong becomes a `Failure`, so that other jobs can go on."""
    try:
        return do(job, progress=progress)
    except MetaladError as error:
        return Failure(str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        with contextlib.suppress(MetaladError):
            page = Path(job.work) / "error.txt"
            write_text(page, "".join(traceback.format_exception(error)))
            reason += f"; see {page}"
        return Failure(" ".join(reason.split()))


def answer(values: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job told in JSON's own types, and return its outcome in them: what `metalad.runtime.tasks` calls elsewhere."""
    return attempt(Job.from_json(values)).to_json()


def do(job: Job, *, progress: bool = False) -> Row:
    """Do the job with exactly its number of threads, on which the last bits of a result depend.

    Raises:
        MetaladError: whatever `train` and `evaluate` raise.
    """
    config = _config(job)
    device = choose_device(job.device)
    with _threads(job.threads):
        if job.cell.category is None:
            return _counted(job, config, device)
        return _trained(job, config, device, progress)


def _config(job: Job) -> DetectorConfig:
    kind = method_named(job.cell.configuration.method).load_config()
    if job.config is not None:
        return from_json(kind, job.config)
    return from_texts(kind, job.cell.configuration.settings)


def _counted(job: Job, config: DetectorConfig, device: torch.device) -> Row:
    detector = method_named(job.cell.configuration.method).load()(config)
    return _row(job, config, device, parameters=_parameters(detector), cost=_cost())


def _trained(job: Job, config: DetectorConfig, device: torch.device, progress: bool) -> Row:
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
        torch.cuda.init()  # type: ignore[no-untyped-call]  # before it there is nothing to reset: an error
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
            precision="fp32",  # the same numbers wherever it is done
            progress=progress,
        )
    begun = time.perf_counter()
    report = evaluate(work / "run", data, out=work / "evaluation", device=job.device, progress=progress)
    evaluating = time.perf_counter() - begun
    if job.picture is not None:
        draw_examples(Path(job.picture), model, data, report)
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


def _row(job: Job, config: DetectorConfig, device: torch.device, **found: Any) -> Row:
    cell = job.cell
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Row(
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
        **{"data": {}, "training": {}, "metrics": {}, **found},
    )


def _counts(model: Model, report: Report) -> dict[str, int]:
    judged = len(report.verdicts)
    return {**model.header.images, "judged": judged, "judged_skipped": len(report.skipped)}


def _parameters(detector: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in detector.parameters())


def _metrics(report: Report) -> dict[str, Any]:
    found = report.to_json()
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
        for scoring in found["scorings"]
    }


def _epochs(work: Path, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many epochs were trained and which was kept in the last stage; nothing where none were."""
    history = _history(work)
    if not history:
        return {}
    last = [row for row in history if row["stage"] == history[-1]["stage"]]
    keeps_last = stages[history[-1]["stage"]]["keep"] == "last"
    kept = last[-1] if keeps_last else min(last, key=lambda row: float(row["validation_loss"]))
    found = {"epochs": len(history), "kept_epoch": kept["epoch"], "validation_loss": kept["validation_loss"]}
    return {**found, "losses": _thinned(last)}


def _thinned(history: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    """Return (epoch, training loss, validation loss) of at most some fifty epochs, spread evenly, and of the last."""
    step = max(1, len(history) // MOST_LOSSES)
    kept = [*history[step - 1 : -1 : step], history[-1]]
    return [(row["epoch"], round(row["training_loss"], 6), round(row["validation_loss"], 6)) for row in kept]


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
    """The work folder's memory over sessions: what was begun there, how often, and what training took.

    A folder that was begun with other code, data or threads is emptied: half of one and half of another is neither.
    """

    def __init__(self, work: Path, begun: Mapping[str, Any]) -> None:
        self._work, self._file = work, work / "state.json"
        self._begun = json.loads(json.dumps(begun))
        state = self._stored()
        if state.get("begun") != self._begun:
            shutil.rmtree(work, ignore_errors=True)
            state = {}
        self.sessions: int = state.get("sessions", 0) + 1
        self._finished: float | None = state.get("train_seconds")
        self._write()

    @property
    def seconds(self) -> float:
        """Seconds that training took; of one that was interrupted, at least those of the epochs that counted."""
        return self._finished or 0.0

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Time what happens inside, unless training had ended in an earlier session."""
        begun = time.perf_counter()
        yield
        if self._finished is None:
            history = _history(self._work)
            in_epochs = float(history[-1]["seconds"]) if history else 0.0
            self._finished = max(time.perf_counter() - begun, in_epochs)
            self._write()

    def _stored(self) -> dict[str, Any]:
        try:
            state = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _write(self) -> None:
        state = {"begun": self._begun, "sessions": self.sessions, "train_seconds": self._finished}
        write_json(self._file, state)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
