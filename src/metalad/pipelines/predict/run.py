"""Judge any number of images: here, in several processes, or on a Ray cluster; killed, it goes on where it stopped."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from metalad.detectors.base import Scoring
from metalad.pipelines.predict.elsewhere import Elsewhere
from metalad.pipelines.predict.journal import Journal, Plan, ShardFile, found_in, rebuilt
from metalad.pipelines.predict.pipeline import Crew, Judge, PredictedImage, Writer, predict_sources
from metalad.pipelines.predict.shards import digest_of
from metalad.pipelines.predict.sources import Source, find_sources
from metalad.runtime.errors import ConfigError
from metalad.runtime.files import exclusive_lock, replacing
from metalad.storage.model_file import Model, read_model
from metalad.storage.run_folder import RunFolder
from metalad.training.device import choose_device


def predict(
    run: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    scoring: Scoring | None = None,
    false_alarms: float | None = None,
    batch_size: int = 16,
    strict: bool = False,
    maps: bool = True,
    overlays: bool = True,
    workers: int | None = None,
    ray: str | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: bool = False,
) -> Generator[PredictedImage, None, None]:
    """Judge images one after the other, in the order given, and write a map and an overlay of each into `out`.

    `predictions.jsonl` there holds the results, a JSON object a line; it appears when the last is out. Stop by
    closing the generator: all files written are whole. Wherever images are judged, the results are the same.

    Args:
        run: a run folder or a model file.
        paths: images, and folders whose images are found at any depth.
        out: gets `maps/` and `overlays/`, which mirror the folders of the images.
        scoring: `calibrated` or `raw` to judge by, the model's own by default.
        false_alarms: wanted fraction of good images above the threshold, the model's own by default.
        batch_size: images judged at once; memory grows with it, and by a hash of a name with each image.
        strict: let the first unreadable image be an error instead of a result that names it.
        maps: write the anomaly maps, 16-bit grey PNG files of the images' own sizes; 16384 is the threshold.
        overlays: write the images with the map laid over them, and an outline where it exceeds the threshold.
        workers: judge in so many processes at once, dealt out to the GPUs if there are several; None: in this one.
        ray: judge on Ray: the address of a cluster, or `local`; `workers` limits the tasks at once.
        resume: go on with a judgement into `out` that was stopped: with the images that it had listed, none of which
            is judged twice; all results are yielded, those from before first.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        progress: show a progress bar on the terminal.

    Raises:
        ModelFileError: no usable model. DataError: no images there. ConfigError: a setting that cannot be.
        ImageError: an image cannot be read, and `strict` is set. RunError: `out` cannot be written, is in use, was
        begun with something else than what is resumed, or a process was killed.
        The first three at the call, the others while results are taken.
    """
    _check(batch_size, workers)
    elsewhere = Elsewhere(device, workers, ray) if workers is not None or ray is not None else None
    model = read_model(run, "cpu" if elsewhere else str(choose_device(device)))
    journal = Journal(out)
    begun = journal.plan() if resume else None
    plan = Plan(
        model=digest_of(model.path),
        paths=_digest(paths),
        scoring=model.scoring(scoring),
        threshold=model.threshold(false_alarms, scoring),
        batch_size=batch_size,
        strict=strict,
        maps=maps,
        overlays=overlays,
        device=elsewhere.device_type if elsewhere else model.detector.device.type,
        torch_threads=begun.torch_threads if begun else Crew.of_machine().torch_threads,
    )
    sources = iter(()) if begun else find_sources(paths, out)
    return _predicted(journal, plan, begun, sources, model, elsewhere, progress)


def _check(batch_size: int, workers: int | None) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; it must be at least 1")


def _digest(paths: Sequence[Path]) -> str:
    return hashlib.sha256("\0".join(map(os.path.abspath, paths)).encode(errors="surrogateescape")).hexdigest()


def _predicted(
    journal: Journal,
    plan: Plan,
    begun: Plan | None,
    sources: Iterable[Source],
    model: Model,
    elsewhere: Elsewhere | None,
    progress: bool,
) -> Generator[PredictedImage, None, None]:
    with exclusive_lock(journal.lock, "predict"):
        if begun is None:
            plan = journal.begin(plan, sources, elsewhere.processes if elsewhere else 0)
        else:
            plan = dataclasses.replace(plan, images=begun.images, shard=begun.shard)
            RunFolder(journal.out, verbose=False).compare(vars(begun), vars(plan))
            if journal.finished:
                yield from journal.recorded(plan)
                return
            journal.go_on()
        found = elsewhere.judge(journal, plan, model.path) if elsewhere else _here(journal, plan, model)
        with (
            contextlib.closing(found),
            replacing(journal.results) as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            for result in tqdm(found, "predict", plan.images, unit="image", disable=not progress, leave=False):
                file.write(json.dumps(result.to_json(), allow_nan=False) + "\n")
                yield result
        journal.finish()


# Here


def _here(journal: Journal, plan: Plan, model: Model) -> Generator[PredictedImage, None, None]:
    judge = Judge(model.detector, plan.scoring, plan.threshold, plan.batch_size)
    writer = Writer(journal.out, plan.threshold, plan.strict, plan.maps, plan.overlays)
    crew = Crew(Crew.of_machine().workers, plan.torch_threads)
    with contextlib.closing(predict_sources(judge, _left(journal, plan), writer, crew)) as judged:
        for shard in journal.shards(plan):
            with contextlib.closing(ShardFile(shard.file)) as file:
                for source, found in zip(shard.sources, file.found, strict=False):
                    yield rebuilt(source, found, journal.out, plan.threshold)
                for _ in shard.sources[len(file.found) :]:
                    result = next(judged)
                    file.append(result)
                    yield result


def _left(journal: Journal, plan: Plan) -> Iterator[Source]:
    for shard in journal.shards(plan):
        yield from shard.sources[len(found_in(shard)) :]
