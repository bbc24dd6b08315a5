"""Evaluate a model on a category's test images: metrics in all, per defect, size and corruption, and a page."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from metalad.data import Category, Sample, read_category
from metalad.data.copies import CopyReader
from metalad.data.corruptions import CORRUPTIONS
from metalad.data.loading import inspect_truth
from metalad.data.mask_notes import MaskFacts, mask_facts, mask_notes
from metalad.data.reading import Reading
from metalad.detectors.base import SCORINGS, Detector, Scoring
from metalad.detectors.inference import DetectorEngine
from metalad.inference.stream import (
    InferredImage,
    Predictor,
    UnreadableImage,
    default_batch_size,
    infer_stream,
)
from metalad.methods import method_named
from metalad.pipelines.model import Model, stored_model
from metalad.pipelines.rendering import render
from metalad.pipelines.used_outputs import PAGE, REPORT, require_same_report
from metalad.results.evaluation import Evaluation, MeasuredImage, measure_pixels, size_index
from metalad.results.pages.report_page import write_html_report
from metalad.results.report import EvaluatedImage, Report
from metalad.runtime.errors import DataError, ImageError, escaped
from metalad.runtime.files import require_writable, write_json
from metalad.runtime.progress import counted, logger
from metalad.storage.model_file import StoredModel
from metalad.visualization.picture_folder import PictureFolder
from metalad.visualization.pictures import EmbeddedPicture, PictureStore, embed, embed_crop

RATES = tuple(
    float(f"{mantissa}e-{power}")
    for power in (4, 3, 2, 1)
    for mantissa in (1, 1.5, 2, 3, 5, 7)
    if mantissa / 10**power <= 0.5
)
"""False-alarm rates whose thresholds are reported, so that a page can show the rate of a threshold."""

Pictures = Mapping[str, EmbeddedPicture | None]


def evaluate(
    model: "str | Path | Model",
    data: str | Path,
    *,
    out: str | Path | None = None,
    scoring: Scoring | None = None,
    false_alarms: float | None = None,
    threshold: float | None = None,
    corruptions: bool = False,
    maps: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = False,
) -> Report:
    """Score every test image of `data`, and compute metrics. Nothing is written without `out`.

    Args:
        model: a run folder or a model file; in Python also a model.
        data: a category with test images; its masks, where there are any, give the pixel metrics.
        out: a folder that gets `report.json`, the page `report.html`, and pictures at full size in `report_files`.
        scoring: `calibrated` or `raw` decides, by default the model's own; the report has both.
        false_alarms: wanted fraction of good images above the threshold; the model's own by default.
        threshold: the score above which an image is anomalous, instead of the one for a false-alarm rate.
        corruptions: score the good images also under each of `metalad.data.corruptions.CORRUPTIONS`.
        maps: return the anomaly maps at the images' own sizes in `Report.maps`; they need memory.
        strict: stop with an error at the first image that is unreadable, instead of skipping it, or has several pages.
        overwrite: replace a report in `out` also if it is of another run or of other data.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        progress: show progress on stderr.

    Raises:
        ModelFileError: no usable model. DataError: no test images, or a mask that does not fit its image.
        RunError: the reports cannot be written, or `out` has a report of another run or of other data.
    """
    stored = stored_model(model, device)
    category = read_category(Path(data), seed=stored.header.seed)
    if not category.test:
        raise DataError(
            f"{data}: no test images there; evaluate needs a folder `test` with `good` and defect folders, "
            "or a file labels.csv that states which images are good"
        )
    chosen = stored.scoring(scoring)
    thresholds = {name: stored.threshold(false_alarms, name) for name in SCORINGS}
    thresholds[chosen] = stored.threshold_or(threshold, false_alarms, chosen)
    rate = None if threshold is not None else stored.rate(false_alarms)
    if out is not None:
        require_same_report(Path(out), _run_name(stored), category.root, overwrite=overwrite)
        for name in (REPORT, PAGE):
            require_writable(Path(out) / name)
    folder = None if out is None else PictureFolder(Path(out) / PAGE)
    closing_folder = contextlib.closing(folder) if folder else contextlib.nullcontext()
    reader = CopyReader(Reading(stored.header.white_level, strict=strict), stored.header.image_hashes)
    with contextlib.closing(PictureStore()) as pictures, closing_folder:
        worker = _Worker(stored.detector, chosen, thresholds[chosen], folder, corruptions, maps, reader)
        found = _evaluated(worker, category, pictures, strict, progress)
        report = _report(stored, category, found, thresholds, chosen, rate, corruptions)
        if out is not None:
            write_json(Path(out) / REPORT, report.to_json())
            write_html_report(Path(out) / PAGE, report, pictures.read, folder)
    return report


class _Numbered(NamedTuple):
    """A test image, and its number among all."""

    number: int
    sample: Sample


@dataclasses.dataclass(frozen=True, eq=False)
class _EvaluatedSample:
    """One test image as a worker returns it."""

    sample: Sample
    measured: MeasuredImage
    pictures: Pictures
    mask: MaskFacts | None
    anomaly_map: Float32[np.ndarray, "_ _"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class _Worker:
    """Measures and renders inferred images, in worker threads."""

    detector: Detector
    scoring: Scoring
    threshold: float
    folder: PictureFolder | None
    corruptions: bool
    maps: bool
    reader: CopyReader

    @property
    def predictor(self) -> Predictor:
        return Predictor(DetectorEngine(self.detector), SCORINGS, default_batch_size(self.detector.device.type))

    def load(self, source: _Numbered) -> UInt8[np.ndarray, "height width 3"]:
        return self.reader.read(source.sample.path)

    def finish(self, item: InferredImage[_Numbered] | UnreadableImage[_Numbered]) -> _EvaluatedSample | ImageError:
        if isinstance(item, UnreadableImage):
            return item.error
        number, sample = item.source
        truth = inspect_truth(sample, item.decoded.size)
        mask = None if truth is None else truth.pixels
        maps = item.own_maps
        measured = MeasuredImage(
            defect=sample.defect,
            label=sample.abnormal,
            scores=item.scores,
            pixels=measure_pixels(maps, mask, anomalous=sample.abnormal),
            size=size_index(mask),
            corrupted=self._corrupted(item.decoded.pixels, number) if self.corruptions and not sample.abnormal else {},
        )
        try:
            pictures = self._pictures(item, mask, self.folder) if self.folder else {}
        except ImageError as error:  # a large image could be read once, but not again
            return error
        anomaly_map = item.own_map(self.scoring) if self.maps else None
        facts = mask_facts(truth, maps[self.scoring].shape) if truth is not None and sample.abnormal else None
        return _EvaluatedSample(sample, measured, pictures, facts, anomaly_map)

    def _corrupted(
        self, pixels: UInt8[np.ndarray, "height width 3"], number: int
    ) -> Mapping[str, Mapping[Scoring, float]]:
        # The noise of an image depends on its number alone.
        images = np.stack([change(pixels, np.random.default_rng(number)) for change in CORRUPTIONS.values()])
        scores = DetectorEngine(self.detector).infer(images, SCORINGS).scores
        return {
            name: {scoring: float(scores[scoring][index]) for scoring in SCORINGS}
            for index, name in enumerate(CORRUPTIONS)
        }

    def _pictures(self, item: InferredImage[_Numbered], mask: np.ndarray | None, folder: PictureFolder) -> Pictures:
        rendering, (number, sample) = render(item, mask, self.scoring), item.source
        pictures = {
            "Input": rendering.image,
            "Anomaly map": rendering.overlay(self.threshold),
            "Ground truth": rendering.white_truth,
        }
        is_wrong = (rendering.score > self.threshold) != sample.abnormal
        files = folder.write_full_size(number, pictures, is_wrong)
        found = {label: embed(picture, files[label]) for label, picture in pictures.items()}
        return {
            "Input": found["Input"],
            "Peak": embed_crop(rendering.image, *rendering.peak),
            "Reconstruction": embed(rendering.reconstruction),
            "Anomaly map": found["Anomaly map"],
            "Ground truth": found["Ground truth"],
        }


class _Found(NamedTuple):
    """What was accumulated of the readable test images, in their order."""

    evaluation: Evaluation
    samples: list[Sample]
    scores: list[Mapping[Scoring, float]]
    masks: list[MaskFacts]
    maps: list[Float32[np.ndarray, "_ _"]]
    skipped: list[tuple[str, str]]
    reading_notes: list[str]


def _evaluated(worker: _Worker, category: Category, pictures: PictureStore, strict: bool, progress: bool) -> _Found:
    found = _Found(Evaluation(SCORINGS), [], [], [], [], [], [])
    sources = [_Numbered(index, sample) for index, sample in enumerate(category.test)]
    stream = infer_stream(worker.predictor, sources, worker.load, worker.finish)
    with contextlib.closing(stream) as results:
        for item in counted(results, "evaluate", "image", len(sources), shown=progress):
            if isinstance(item, ImageError):
                if strict:
                    raise item
                logger.warning("skipped: %s", item)
                found.skipped.append((str(item.path), item.reason))
                continue
            pictures.write(len(found.samples), item.pictures)
            found.evaluation.add(item.measured)
            found.samples.append(item.sample)
            found.scores.append(item.measured.scores)
            if item.mask is not None:
                found.masks.append(item.mask)
            if item.anomaly_map is not None:
                found.maps.append(item.anomaly_map)
    if not found.samples:
        path, reason = found.skipped[0]
        raise DataError(f"none of {len(sources)} images can be read; the first, {path}: {reason}")
    found.reading_notes.extend(worker.reader.notes())
    return found


def _run_name(model: StoredModel) -> str:
    return "" if model.path is None else model.path.parent.resolve().name


def _report(
    model: StoredModel,
    category: Category,
    found: _Found,
    thresholds: Mapping[Scoring, float],
    chosen: Scoring,
    rate: float | None,
    corruptions: bool,
) -> Report:
    config = model.detector.config
    return Report(
        category=category.name,
        method=model.header.method,
        run=_run_name(model),
        resolution=config.image_size,
        smoothing_sigma=config.smoothing_sigma,
        scorings=tuple(
            dataclasses.replace(
                found.evaluation.report(name, thresholds[name], rate if name == chosen else rate or model.rate()),
                rate_thresholds=tuple((each, model.threshold(each, name)) for each in RATES),
            )
            for name in sorted(SCORINGS, key=lambda name: name != chosen)
        ),
        images=tuple(
            EvaluatedImage(
                path=escaped(category.relative(sample)),
                defect=sample.defect,
                label=sample.abnormal,
                score=scores[chosen],
                raw_score=scores["raw"],
                is_anomalous=scores[chosen] > thresholds[chosen],
            )
            for sample, scores in zip(found.samples, found.scores, strict=True)
        ),
        skipped=tuple(found.skipped),
        settings=model.header.to_dict(),
        notes=_notes(model, category, found, corruptions),
        caution=None if rate is None else model.caution(rate, chosen),
        data=str(category.root.resolve()),
        maps=tuple(found.maps),
    )


def _notes(model: StoredModel, category: Category, found: _Found, corruptions: bool) -> tuple[str, ...]:
    notes = []
    unmasked = sum(sample.abnormal and sample.mask is None for sample in found.samples)
    if unmasked:
        notes.append(f"{unmasked} anomalous images have no ground-truth mask; pixel metrics leave them out.")
    notes += mask_notes(found.masks)
    notes += [f"{line}." for line in (*category.test_notes, *found.reading_notes)]
    if all(sample.abnormal for sample in found.samples):
        kinds = sorted({sample.defect for sample in found.samples})
        notes.append(
            f"There are no good test images: all {len(found.samples)} count as anomalous, as defects "
            f"{', '.join(kinds[:5])}{', ...' if len(kinds) > 5 else ''}. Put good ones into a folder named good."
        )
    if corruptions and all(sample.abnormal for sample in found.samples):
        notes.append("There are no good test images, so no corruption was evaluated.")
    if method_named(model.header.method).image_level:
        notes.append("The method's paper scores whole images; the anomaly map is metalad's own.")
    if category.name != model.header.category:
        notes.append(f"The model was trained on {model.header.category}, not on {category.name}.")
    return tuple(notes)
