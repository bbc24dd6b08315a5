"""The results of an evaluation, as plain values: for JSON, a table on the terminal, a notebook, or an HTML page.

All metrics are fractions in [0, 1]; `None` stands for a metric that is undefined, such as a pixel metric
without masks. A higher score is more anomalous everywhere.
"""

import html
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float32

from metalad.results.caution import Caution
from metalad.results.separation import Separation
from metalad.runtime.errors import escaped
from metalad.visualization.plots import Curve, curve_plots, percent


@dataclass(frozen=True)
class Metrics:
    """The eight numbers of one evaluation; see `metalad.results.metrics` for their definitions."""

    pixel_auroc_fpr30: float | None = None
    pixel_auroc: float | None = None
    pixel_aupro: float | None = None
    pixel_ap: float | None = None
    pixel_f1max: float | None = None
    image_auroc: float | None = None
    image_ap: float | None = None
    image_f1max: float | None = None


METRIC_NAMES = tuple(entry.name for entry in fields(Metrics))


@dataclass(frozen=True)
class EvaluatedImage:
    """What was decided about one image: `abnormal` is the decision, `label` the label."""

    path: str
    defect: str
    label: bool
    score: float
    raw_score: float
    is_anomalous: bool

    @property
    def correct(self) -> bool:
        """Whether the decision agrees with the label."""
        return self.is_anomalous == self.label


@dataclass(frozen=True)
class Confusion:
    """Counts of images; anomalous is positive: fn are missed defects, fp are good images rejected."""

    tp: int
    fp: int
    tn: int
    fn: int


@dataclass(frozen=True)
class DefectRow:
    """One kind of defect against all good test images; `found` of its `images` exceed the threshold.

    `metrics` is at the model's resolution, `metrics_original` at the images' own.
    """

    defect: str
    images: int
    found: int
    metrics: Metrics
    metrics_original: Metrics = Metrics()


@dataclass(frozen=True)
class SizeRow:
    """Anomalous images with a defect of about one size, against all good test images.

    The anomalous fraction of each image is at least `least` and below `below`; the last size includes images that are
    anomalous as a whole. `found` of the `images` exceed the threshold; `metrics` is at the model's resolution.
    """

    least: float
    below: float
    images: int
    found: int
    metrics: Metrics

    @property
    def size(self) -> str:
        """The size as a text, in percent of the image."""
        least, below = f"{100 * self.least:.3g}", f"{100 * self.below:.3g}"
        if self.least <= 0:
            return f"below {below} %"
        return f"{least} % and more" if self.below >= 1 else f"{least} to {below} %"


@dataclass(frozen=True)
class CorruptionRow:
    """The `images` good test images under one corruption, against the anomalous ones without it.

    `image_auroc_loss` is the decrease of image AUROC, `false_alarm_rate` the fraction of corrupted good images above
    the threshold, `false_alarm_rate_before` that of the same images without the corruption.
    """

    corruption: str
    images: int
    image_auroc: float | None
    image_auroc_loss: float | None
    false_alarm_rate: float
    false_alarm_rate_before: float


@dataclass(frozen=True)
class ScoringReport:
    """The results by one scoring: metrics at the model's and at the images' own resolution.

    `false_alarm_rate` is the fraction of good images that `threshold` was set to reject, if there was one;
    `per_corruption` is empty unless corruptions were evaluated. `rate_thresholds`: pairs of a false-alarm rate and the
    threshold that the model sets for it, by increasing rate. `separation`: which threshold would separate the test
    images; None without good or without anomalous ones.
    """

    name: Literal["calibrated", "raw"]
    threshold: float
    metrics_model: Metrics
    metrics_original: Metrics
    confusion: Confusion
    per_defect: tuple[DefectRow, ...] = ()
    curves: tuple[Curve, ...] = ()
    false_alarm_rate: float | None = None
    per_size: tuple[SizeRow, ...] = ()
    per_corruption: tuple[CorruptionRow, ...] = ()
    rate_thresholds: tuple[tuple[float, float], ...] = ()
    separation: Separation | None = None


@dataclass(frozen=True)
class Report:
    """One evaluated model; the first scoring is the one that decides.

    images: the test images. resolution: the model's (height, width) in pixels. smoothing_sigma: in those pixels.
    skipped: (path, reason) of unreadable images. settings: what is needed to repeat the run. data: the folder that the
    paths of the images are relative to, if it is known. maps: the anomaly maps by the deciding scoring at the images'
    own sizes, in their order, if they were asked for; not part of the JSON. caution: why the threshold cannot be
    relied on, if that is so.

    Raises:
        ValueError: there is no scoring.
    """

    category: str
    method: str
    run: str
    resolution: tuple[int, int]
    smoothing_sigma: float
    scorings: tuple[ScoringReport, ...]
    images: tuple[EvaluatedImage, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    data: str | None = None
    caution: Caution | None = None
    maps: tuple[Float32[np.ndarray, "_ _"], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.scorings:
            raise ValueError("a report needs at least one scoring")

    @property
    def chosen(self) -> ScoringReport:
        """The scoring that decides."""
        return self.scorings[0]

    @property
    def metrics(self) -> Metrics:
        """The metrics of the deciding scoring at the model's resolution."""
        return self.chosen.metrics_model

    @property
    def threshold(self) -> float:
        """The threshold of the deciding scoring."""
        return self.chosen.threshold

    @property
    def wrong(self) -> int:
        """The number of images that are decided wrongly."""
        return sum(not image.correct for image in self.images)

    def to_json(self) -> dict[str, Any]:
        """Return all but the maps as JSON's own types; NaN and infinity become null."""
        return {entry.name: _jsonable(getattr(self, entry.name)) for entry in fields(self) if entry.name != "maps"}

    @classmethod
    def from_json(cls, values: object) -> "Report":
        """Rebuild a report from `to_json`, also of metalad 0.1; unknown entries are ignored.

        Raises:
            ValueError: it is no report, or an entry is missing.
        """
        if not isinstance(values, Mapping):
            raise ValueError("not a report: not an object")
        try:
            return _report_from(values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a report: {error}") from error

    def _repr_html_(self) -> str:
        """Show the headline, the metrics and the curves in a notebook."""
        rows = ((name, getattr(self.metrics, name)) for name in METRIC_NAMES)
        cells = "".join(
            f"<tr><th>{name}</th><td>{percent(value)} %</td></tr>" for name, value in rows if value is not None
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        curves = ((self.chosen.name, curve) for curve in self.chosen.curves)
        plots = "".join(f'<div style="display:inline-block">{plot.svg}</div>' for plot in curve_plots(curves))
        title = html.escape(f"{self.category}: {verdict_line(self)}")
        lead = html.escape(f"{self.method}, {threshold_line(self)}")
        caution = f"<p><b>{html.escape(str(self.caution))}</b></p>" if self.caution else ""
        return f"<h3>{title}</h3>{caution}<p>{lead}</p>{notes}<table>{cells}</table>{plots}"

    def flat(self) -> dict[str, Any]:
        """Return the short JSON object of `--json`: the deciding scoring's metrics at the model's resolution, and more.

        `images`, `wrong` and `skipped` are counts; `original` holds the metrics at the images' own
        resolution, `raw` those of the raw scoring (null where there is none).
        """
        raw = next((scoring.metrics_model for scoring in self.scorings if scoring.name == "raw"), None)
        flat = {
            **asdict(self.chosen.metrics_model),
            "threshold": self.chosen.threshold,
            "caution": self.caution,
            "separation": self.chosen.separation,
            "resolution": self.resolution,
            "per_defect": {row.defect: row.metrics for row in self.chosen.per_defect},
            "per_defect_original": {row.defect: row.metrics_original for row in self.chosen.per_defect},
            "per_size": self.chosen.per_size,
            "per_corruption": self.chosen.per_corruption,
            "original": self.chosen.metrics_original,
            "raw": raw,
            "images": len(self.images),
            "wrong": self.wrong,
            "skipped": len(self.skipped),
            "method": self.method,
            "category": self.category,
        }
        return {key: _jsonable(value) for key, value in flat.items()}


Made = TypeVar("Made")


def _made(kind: type[Made], values: Mapping[str, Any], **decoded: Any) -> Made:
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in known} | decoded)


def _report_from(values: Mapping[str, Any]) -> Report:
    return _made(
        Report,
        values,
        resolution=tuple(values["resolution"]),
        scorings=tuple(map(_scoring_from, values["scorings"])),
        images=tuple(map(_image_from, values["images"] if "images" in values else values["verdicts"])),
        skipped=tuple((path, reason) for path, reason in values["skipped"]),
        notes=tuple(values["notes"]),
        caution=_made(Caution, values["caution"]) if values.get("caution") else None,
    )


def _scoring_from(values: Mapping[str, Any]) -> ScoringReport:
    return _made(
        ScoringReport,
        values,
        # The only number that can be infinite: the threshold of a model that rejects nothing.
        threshold=_number(values["threshold"], math.inf),
        metrics_model=_made(Metrics, values["metrics_model"]),
        metrics_original=_made(Metrics, values["metrics_original"]),
        confusion=_made(Confusion, values["confusion"]),
        per_defect=tuple(
            _made(
                DefectRow,
                row,
                metrics=_made(Metrics, row["metrics"]),
                metrics_original=_made(Metrics, row["metrics_original"]),
            )
            for row in values["per_defect"]
        ),
        # Earlier versions wrote neither, or used another name.
        per_size=tuple(
            _made(SizeRow, row, metrics=_made(Metrics, row["metrics"])) for row in values.get("per_size", ())
        ),
        per_corruption=tuple(map(_corruption_from, values.get("per_corruption", values.get("per_nuisance", ())))),
        separation=_made(Separation, values["separation"]) if values.get("separation") else None,
        rate_thresholds=tuple((rate, _number(limit, math.inf)) for rate, limit in values.get("rate_thresholds", ())),
        curves=tuple(_made(Curve, curve, x=tuple(curve["x"]), y=tuple(curve["y"])) for curve in values["curves"]),
    )


def _image_from(values: Mapping[str, Any]) -> EvaluatedImage:
    return _made(
        EvaluatedImage,
        values,
        score=_number(values["score"]),
        raw_score=_number(values["raw_score"]),
        label=values["label"] if "label" in values else values["abnormal_truth"],
        is_anomalous=values["is_anomalous"] if "is_anomalous" in values else values["abnormal"],
    )


def _corruption_from(values: Mapping[str, Any]) -> CorruptionRow:
    return _made(CorruptionRow, values, corruption=values.get("corruption") or values["nuisance"])


def _number(value: float | None, missing: float = math.nan) -> float:
    return missing if value is None else float(value)


def _jsonable(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, Mapping):
        return {_jsonable(str(key)): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _jsonable(getattr(value, name)) for name in value.__dataclass_fields__}
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return _jsonable(value.tolist())
    return _jsonable(str(value))


def verdict_line(report: Report) -> str:
    """Return the result in one line, such as '63 of 63 defective found, 1 of 20 good rejected'."""
    counts = report.chosen.confusion
    parts = []
    if defective := counts.tp + counts.fn:
        parts.append(f"{counts.tp} of {defective} defective found")
    if good := counts.tn + counts.fp:
        parts.append(f"{counts.fp} of {good} good rejected")
    return ", ".join(parts) or "no image was evaluated"


def threshold_line(report: Report) -> str:
    """Return which threshold decides: 'threshold 3.2 on the raw score, set to reject 1 % of good images'."""
    scoring = report.chosen
    line = f"threshold {scoring.threshold:.4g} on the {scoring.name} score"
    if scoring.false_alarm_rate is not None:
        line += f", set to reject {100 * scoring.false_alarm_rate:.3g} % of good images"
    return line
