"""Measure a model on a category's test images: numbers in all, per defect, size and nuisance, and a page to look at."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from metalad.data import Category, Images, Sample, load_images, read_category
from metalad.detectors.base import SCORINGS, Scoring
from metalad.methods import method_named
from metalad.pipelines.measurement import Tally, score_images, scoring_report
from metalad.pipelines.rendering import render
from metalad.results.report import Report, Verdict
from metalad.runtime.errors import DataError
from metalad.runtime.files import write_json
from metalad.storage.model_file import Model, read_model
from metalad.training.device import choose_device
from metalad.visualization.html_report import write_html_report
from metalad.visualization.pictures import Pictures


def evaluate(
    run: Path,
    data: Path,
    *,
    out: Path | None = None,
    scoring: Scoring | None = None,
    false_alarms: float | None = None,
    corruption: bool = False,
    strict: bool = False,
    device: str = "auto",
    progress: bool = False,
) -> Report:
    """Judge every test image of `data`, and write `report.json` and a self-contained `report.html`.

    Args:
        run: a run folder or a model file.
        data: a category with test images; its masks, where there are any, give the pixel metrics.
        out: where the reports go, `RUN/evaluation` by default.
        scoring: `calibrated` or `raw` to judge by, the model's own by default; the report shows both.
        false_alarms: wanted fraction of good images above the threshold, the model's own by default.
        nuisance: judge the good images once more under each of `metalad.data.corruptions.CORRUPTIONS`, too.
        strict: let the first unreadable image be an error instead of skipping it.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        progress: show a progress bar on the terminal.

    Raises:
        ModelFileError: no usable model. DataError: no test images, or a mask that does not fit its image.
        RunError: the reports cannot be written.
    """
    model = read_model(run, str(choose_device(device)))
    rates = {name: model.threshold(false_alarms, name) for name in SCORINGS}
    category = read_category(data, seed=model.header.seed)
    if not category.test:
        raise DataError(f"{data}: no test images there; evaluate needs a folder `test` with `good` and defect folders")
    images = load_images(category.test, model.detector.config.image_size, strict=strict, progress=progress)
    tally = score_images(model.detector, images, corruption=corruption, progress=progress)
    chosen = model.scoring(scoring)
    report = Report(
        category=category.name,
        method=model.header.method,
        run=model.path.parent.resolve().name,
        resolution=model.detector.config.image_size,
        smoothing_sigma=model.detector.config.smoothing_sigma,
        scorings=tuple(
            scoring_report(name, tally, images.samples, rates[name], false_alarms or model.header.false_alarms)
            for name in sorted(SCORINGS, key=lambda name: name != chosen)
        ),
        verdicts=_verdicts(category, images, tally, chosen, rates[chosen]),
        skipped=tuple((str(skipped.path), skipped.reason) for skipped in images.skipped),
        settings=dataclasses.asdict(model.header),
        notes=_notes(model, category.name, images.samples, corruption, model.caution(false_alarms, chosen)),
        data=str(category.root.resolve()),
    )
    folder = out or model.path.parent / "evaluation"
    write_json(folder / "report.json", report.to_json())
    write_html_report(folder / "report.html", report, _painter(model, images, chosen, rates[chosen]))
    return report


def _verdicts(
    category: Category, images: Images, tally: Tally, scoring: Scoring, threshold: float
) -> tuple[Verdict, ...]:
    scores, raw = tally.scores[scoring], tally.scores["raw"]
    return tuple(
        Verdict(
            path=category.relative(sample),
            defect=sample.defect,
            abnormal_truth=sample.abnormal,
            score=float(scores[index]),
            raw_score=float(raw[index]),
            abnormal=float(scores[index]) > threshold,
        )
        for index, sample in enumerate(images.samples)
    )


def _notes(
    model: Model, category: str, samples: Sequence[Sample], corruption: bool, caution: str | None
) -> tuple[str, ...]:
    notes = []
    unmasked = sum(sample.abnormal and sample.mask is None for sample in samples)
    if unmasked:
        notes.append(f"{unmasked} abnormal images have no ground-truth mask and take no part in pixel metrics.")
    if corruption and all(sample.abnormal for sample in samples):
        notes.append("There are no good test images, so no nuisance was tried.")
    if method_named(model.header.method).image_level:
        notes.append("The method's paper judges whole images; the anomaly map is metalad's own.")
    if category != model.header.category:
        notes.append(f"The model was trained on {model.header.category}, not on {category}.")
    if caution:
        notes.append(f"{caution[0].upper()}{caution[1:]}.")
    return tuple(notes)


def _painter(model: Model, images: Images, scoring: Scoring, threshold: float) -> Callable[[int], Pictures]:
    def draw(index: int) -> Pictures:
        rendering = render(model.detector, images.samples[index], images.pixels[index], scoring)
        return Pictures(
            image=rendering.image,
            reconstruction=rendering.reconstruction,
            anomaly_map=rendering.overlay(threshold),
            ground_truth=rendering.white_truth,
        )

    return draw
