"""Score any number of image files: in this process, in several, or on a Ray cluster; a killed run can be resumed."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

from metalad.data.content import file_hash
from metalad.data.reading import NoteCounter
from metalad.data.video import decoded_in_order
from metalad.inference.model import ScoringModel
from metalad.inference.stream import Threads, default_batch_size, infer_stream
from metalad.pipelines.model import Model, opened_model
from metalad.pipelines.predict.formats import write_formats
from metalad.pipelines.predict.journal import Journal, Plan, ShardFile, rebuilt, stored_lines
from metalad.pipelines.predict.remote import Remote
from metalad.pipelines.predict.saving import Writer
from metalad.pipelines.predict.sources import Source, find_sources
from metalad.results.caution import Caution
from metalad.results.pages.prediction_page import PredictionInfo, remove_prediction_page, write_prediction_page
from metalad.results.prediction import SavedPrediction
from metalad.runtime.choices import Format, Scoring
from metalad.runtime.errors import ConfigError
from metalad.runtime.files import replacing
from metalad.runtime.lock import exclusive_lock
from metalad.runtime.progress import counted, logger
from metalad.runtime.settings import check_choice, whole_number
from metalad.storage.opening import is_exported
from metalad.storage.run_folder import require_same


def predict(
    run: "str | Path | Model",
    paths: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    scoring: Scoring | None = None,
    false_alarms: float | None = None,
    threshold: float | None = None,
    batch_size: int | None = None,
    every: int = 1,
    strict: bool = False,
    maps: bool = True,
    overlays: bool = True,
    format: Format = "jsonl",
    workers: int | None = None,
    ray: str | None = None,
    resume: bool = False,
    append: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = False,
) -> Generator[SavedPrediction, None, None]:
    """Score image files in the order given, write a map and an overlay of each into `out`, and yield the results.

    `predictions.jsonl` there holds the results, a JSON object a line, and `index.html` shows them by decreasing score;
    both appear when the last is written. Close the generator to stop: all files written are whole. The results do not
    depend on where images are processed.

    A folder `out` that holds results is refused, unless `resume`, `append` or `overwrite` decides what becomes of them.

    Args:
        run: a run folder or a model file; in Python also a model that was read from one.
        paths: image and video files, and folders whose images are found at any depth; one or several.
        out: gets `maps/` and `overlays/`, which mirror the folders of the images.
        scoring: `calibrated` or `raw`; the model's own by default.
        false_alarms: wanted fraction of good images above the threshold; the model's own by default.
        threshold: the score above which an image is anomalous, instead of the one for a false-alarm rate.
        batch_size: images in a batch; by default 1 on a CPU and 16 on a GPU. It can change the last bits of a score.
        every: of a video, score every n-th frame.
        strict: stop with an error at the first unreadable image, instead of a result that names it.
        maps: write the anomaly maps, 16-bit gray PNG files of the images' own sizes; 16384 is the threshold.
        overlays: write the images with the map over them, and an outline where it exceeds the threshold.
        format: `csv` or `coco`: write the results, with a row or an annotation for each region, also as
            `predictions.csv` or `predictions.coco.json`.
        workers: process images in this many processes, distributed over the GPUs if there are several; by default
            in one.
        ray: process images on Ray: the address of a cluster, or `local`; `workers` limits the tasks at once.
        resume: continue a prediction into `out` that was stopped, with the list of images that it had found, none of
            which is processed twice; all results are returned, the earlier ones first.
        append: keep the results in `out`, and add those of images that have no score there; the model, the scoring and
            the threshold must be the same. Only the new results are returned.
        overwrite: first delete the results in `out`, and the maps and overlays that they name; other files stay.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        progress: show progress on stderr.

    Raises:
        ModelFileError: no usable model. DataError: no images there. ConfigError: an impossible setting.
        ImageError: an image cannot be read, and `strict` is set. RunError: `out` cannot be written, is in use, holds
            results, was begun with other settings than it is resumed with, or a process was killed.
            The first three are raised by the call, the others while results are taken.
    """
    _check(batch_size, workers, format, every)
    use = _use(resume=resume, append=append, overwrite=overwrite)
    given = [paths] if isinstance(paths, str | Path) else paths
    files, folder = [Path(path) for path in given], Path(out)
    model = opened_model(run, "cpu" if workers is not None or ray is not None else device)
    where = "cpu" if model.path is not None and is_exported(model.path) else device
    remote = Remote(where, workers, ray) if workers is not None or ray is not None else None
    if model.path is None:
        raise ConfigError("predict into files needs a stored model; save it first, or use model.predict")
    journal = Journal(folder)
    begun = journal.plan() if resume else None
    device_type = remote.device_type if remote else model.engine.device_type
    plan = Plan(
        format=2,
        model=file_hash(model.path),
        paths=_digest(files),
        scoring=model.scoring(scoring),
        threshold=model.threshold_or(threshold, false_alarms, scoring),
        batch_size=batch_size or default_batch_size(device_type),
        strict=strict,
        maps=maps,
        overlays=overlays,
        device=device_type,
        torch_threads=begun.torch_threads if begun else Threads.of(model.engine).engine_threads,
        white_level=model.header.white_level,
        every=every,
    )
    sources = iter(()) if begun else find_sources(files, folder, every)
    caution = model.caution(false_alarms, scoring) if threshold is None else None
    if caution:
        logger.warning("%s", caution)
    info = PredictionInfo(f"{model.header.category}: {model.header.method}", plan.scoring, plan.threshold, caution)
    results = _predicted(journal, plan, begun, use, sources, model, model.path, remote, format, info, progress)
    return _with_caution(results, caution)


def _with_caution(
    results: Generator[SavedPrediction, None, None], caution: Caution | None
) -> Generator[SavedPrediction, None, None]:
    with contextlib.closing(results):
        for result in results:
            yield dataclasses.replace(result, caution=caution.severity) if caution else result


def _check(batch_size: int | None, workers: int | None, format: str, every: int = 1) -> None:
    if batch_size is not None and whole_number("batch_size", batch_size) < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    if workers is not None and whole_number("workers", workers) < 1:
        raise ConfigError(f"workers is {workers}; it must be at least 1")
    if whole_number("every", every) < 1:
        raise ConfigError(f"every is {every}; it must be at least 1")
    check_choice("format", format, Format)


def _use(**chosen: bool) -> str | None:
    """Return the one argument that is set, of those that decide what becomes of results in the folder."""
    names = [name for name, is_set in chosen.items() if is_set]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} exclude each other; choose one")
    return names[0] if names else None


def _begun(journal: Journal, plan: Plan, use: str | None, sources: Iterable[Source], processes: int) -> Plan:
    if use == "append":
        return journal.begin_appended(plan, sources, processes)
    if use != "overwrite":
        journal.require_unused()
    remove_prediction_page(journal.out)
    if use == "overwrite":
        journal.remove_results()
    return journal.begin(plan, sources, processes)


def _digest(paths: Sequence[Path]) -> str:
    return hashlib.sha256("\0".join(map(os.path.abspath, paths)).encode(errors="surrogateescape")).hexdigest()


def _predicted(
    journal: Journal,
    plan: Plan,
    begun: Plan | None,
    use: str | None,
    sources: Iterable[Source],
    model: ScoringModel,
    file: Path,
    remote: Remote | None,
    format: Format,
    info: PredictionInfo,
    progress: bool,
) -> Generator[SavedPrediction, None, None]:
    with exclusive_lock(journal.lock, "predict"):
        if begun is None:
            plan = _begun(journal, plan, use, sources, remote.processes if remote else 0)
        else:
            plan = dataclasses.replace(plan, images=begun.images, shard=begun.shard)
            require_same(journal.out, vars(begun), vars(plan))
            if journal.finished:
                yield from journal.recorded(plan)
                write_formats(format, journal.results)
                write_prediction_page(journal.results, info)
                return
            journal.clean()
        notes = NoteCounter()
        threads = Threads.of(model.engine).workers
        results = remote.results(journal, plan, file, threads) if remote else _here(journal, plan, model)
        with (
            contextlib.closing(results),
            replacing(journal.results) as temporary,
            temporary.open("w", encoding="utf-8") as lines,
        ):
            lines.writelines(journal.earlier_lines())
            for result in counted(results, "predict", "image", plan.images, shown=progress):
                lines.write(json.dumps(result.to_dict(), allow_nan=False) + "\n")
                notes.add(result.path or journal.out, result.notes)
                yield result
        write_formats(format, journal.results)
        write_prediction_page(journal.results, info)
        journal.finish()
        for line in notes.lines():
            logger.warning("%s", line)


def _here(journal: Journal, plan: Plan, model: ScoringModel) -> Generator[SavedPrediction, None, None]:
    writer = Writer.of(plan, journal.out)
    predictor = writer.predictor(model.engine, plan.batch_size)
    threads = Threads(Threads.of(model.engine).workers, plan.torch_threads)
    stream = infer_stream(predictor, _left(journal, plan), writer.load, writer.write, threads)
    with contextlib.closing(stream) as inferred:
        for shard in journal.shards(plan):
            with contextlib.closing(ShardFile(shard.file)) as file:
                for source, line in zip(shard.sources, file.stored, strict=False):
                    yield rebuilt(source, line, journal.out, plan.threshold)
                for _ in shard.sources[len(file.stored) :]:
                    result = next(inferred)
                    file.append(result)
                    yield result


def _left(journal: Journal, plan: Plan) -> Iterator[Source]:
    for shard in journal.shards(plan):
        yield from decoded_in_order(shard.sources[len(stored_lines(shard)) :], lambda source: source.path)
