"""What an evaluation found: plain values that turn into JSON, a terminal table or (see `drawing`) a page.

All metrics are fractions in [0, 1]; `None` stands for a metric that is undefined, such as a pixel metric
without masks. A higher score is more abnormal everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from metalad.runtime.errors import printable


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
class Curve:
    """A curve to plot; `name` is one of pixel_roc, image_roc, pixel_pro, pixel_pr, image_pr, or free text."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    area: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What was decided about one image: `abnormal` is the decision, `abnormal_truth` the label."""

    path: str
    defect: str
    abnormal_truth: bool
    score: float
    raw_score: float
    abnormal: bool

    @property
    def correct(self) -> bool:
        """Whether the decision agrees with the label."""
        return self.abnormal == self.abnormal_truth


@dataclass(frozen=True)
class Confusion:
    """Counts of images; positive is abnormal: fn are missed defects, fp are good images rejected."""

    tp: int
    fp: int
    tn: int
    fn: int


@dataclass(frozen=True)
class DefectRow:
    """One defect type against all good test images; `found` of its `images` were judged abnormal.

    `metrics` is at the model's resolution, `metrics_original` at the images' own.
    """

    defect: str
    images: int
    found: int
    metrics: Metrics
    metrics_original: Metrics = Metrics()


@dataclass(frozen=True)
class SizeRow:
    """Abnormal images with a defect of about one size, against all good test images.

    The abnormal part of each image is at least `least` and below `below`; the last size holds wholly abnormal images,
    too. `found` of the `images` were judged abnormal, `metrics` is at the model's resolution.
    """

    least: float
    below: float
    images: int
    found: int
    metrics: Metrics

    @property
    def size(self) -> str:
        """The size in percent of the image, in words."""
        least, below = f"{100 * self.least:.3g}", f"{100 * self.below:.3g}"
        if self.least <= 0:
            return f"below {below} %"
        return f"{least} % and more" if self.below >= 1 else f"{least} to {below} %"


@dataclass(frozen=True)
class CorruptionRow:
    """The good test images, `images` in number, changed by something harmless, against the abnormal ones as they are.

    `image_auroc_loss` is by how much image AUROC fell, `false_alarm_rate` the fraction of changed good images above
    the threshold, `false_alarm_rate_before` that of the unchanged.
    """

    corruption: str
    images: int
    image_auroc: float | None
    image_auroc_loss: float | None
    false_alarm_rate: float
    false_alarm_rate_before: float


@dataclass(frozen=True)
class Scoring:
    """The results of one way to score: metrics at the model's and at the images' own resolution.

    `false_alarm_rate` is the fraction of good images that `threshold` was set to reject, if one was wanted;
    `per_corruption` is empty unless nuisances were tried.
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


@dataclass(frozen=True)
class Report:
    """One evaluated run; the first scoring is the one that gave the verdicts.

    `resolution` is the model's (height, width) in pixels, `smoothing_sigma` is in those pixels, `skipped`
    holds (path, reason) of unreadable images, `settings` whatever is needed to repeat the run, `data` the
    folder that the verdicts' paths are relative to, if it is known.

    Raises:
        ValueError: there is no scoring.
    """

    category: str
    method: str
    run: str
    resolution: tuple[int, int]
    smoothing_sigma: float
    scorings: tuple[Scoring, ...]
    verdicts: tuple[Verdict, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    data: str | None = None

    def __post_init__(self) -> None:
        if not self.scorings:
            raise ValueError("a report needs at least one scoring")

    @property
    def chosen(self) -> Scoring:
        """The scoring that gave the verdicts."""
        return self.scorings[0]

    @property
    def wrong(self) -> int:
        """The number of images whose verdict disagrees with their label."""
        return sum(not verdict.correct for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON's own types; NaN and infinity become null."""
        return {entry.name: _jsonable(getattr(self, entry.name)) for entry in fields(self)}

    @classmethod
    def from_json(cls, values: object) -> "Report":
        """Rebuild a report from what `to_json` gave; what this version does not know is left out.

        Raises:
            ValueError: it is no report, or lacks something.
        """
        if not isinstance(values, Mapping):
            raise ValueError("not a report: not an object")
        try:
            return _report_from(values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a report: {error}") from error

    def flat(self) -> dict[str, Any]:
        """The short JSON object of `--json`: the chosen scoring's metrics at model resolution on top.

        `images`, `wrong` and `skipped` are counts; `original` holds the metrics at the images' own
        resolution, `raw` those of the raw scoring (null where there is none).
        """
        raw = next((scoring.metrics_model for scoring in self.scorings if scoring.name == "raw"), None)
        flat = {
            **asdict(self.chosen.metrics_model),
            "threshold": self.chosen.threshold,
            "resolution": self.resolution,
            "per_defect": {row.defect: row.metrics for row in self.chosen.per_defect},
            "per_defect_original": {row.defect: row.metrics_original for row in self.chosen.per_defect},
            "per_size": self.chosen.per_size,
            "per_corruption": self.chosen.per_corruption,
            "original": self.chosen.metrics_original,
            "raw": raw,
            "images": len(self.verdicts),
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
        verdicts=tuple(
            _made(Verdict, each, score=_number(each["score"]), raw_score=_number(each["raw_score"]))
            for each in values["verdicts"]
        ),
        skipped=tuple((path, reason) for path, reason in values["skipped"]),
        notes=tuple(values["notes"]),
    )


def _scoring_from(values: Mapping[str, Any]) -> Scoring:
    return _made(
        Scoring,
        values,
        # The only number that is ever infinite: that of a model which must not reject anything.
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
        # An earlier version wrote neither.
        per_size=tuple(
            _made(SizeRow, row, metrics=_made(Metrics, row["metrics"])) for row in values.get("per_size", ())
        ),
        per_corruption=tuple(_made(CorruptionRow, row) for row in values.get("per_corruption", ())),
        curves=tuple(_made(Curve, curve, x=tuple(curve["x"]), y=tuple(curve["y"])) for curve in values["curves"]),
    )


def _number(value: float | None, missing: float = math.nan) -> float:
    return missing if value is None else float(value)


def _jsonable(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        # A file name that is not UTF-8 arrives with lone surrogates, which no JSON file can hold.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
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
    """The outcome in one line, such as '63 of 63 defective found, 1 of 20 good rejected'."""
    counts = report.chosen.confusion
    parts = []
    if defective := counts.tp + counts.fn:
        parts.append(f"{counts.tp} of {defective} defective found")
    if good := counts.tn + counts.fp:
        parts.append(f"{counts.fp} of {good} good rejected")
    return ", ".join(parts) or "no image was judged"


def threshold_line(report: Report) -> str:
    """How the verdicts came about: 'threshold 3.2 on the raw score, set to reject 1 % of good images'."""
    scoring = report.chosen
    line = f"threshold {scoring.threshold:.4g} on the {scoring.name} score"
    if scoring.false_alarm_rate is not None:
        line += f", set to reject {100 * scoring.false_alarm_rate:.3g} % of good images"
    return line


def percent(value: float | None, undefined: str = "–") -> str:
    """A fraction as a percentage with two decimals and no sign: 0.98634 gives '98.63'; None gives a dash."""
    return undefined if value is None or math.isnan(value) else f"{100 * value:.2f}"


def report_table(report: Report) -> str:
    """The summary for a terminal, ASCII if the names are: the verdict, all scorings, a row per defect and so on."""
    blocks = [
        "\n".join([_title(report), verdict_line(report), threshold_line(report), *_skipped_line(report)]),
        _scorings_table(report),
    ]
    if report.chosen.per_defect:
        blocks.append(_groups_table("defect", {row.defect: row for row in report.chosen.per_defect}))
    if report.chosen.per_size:
        blocks.append(_groups_table("size of defect", {row.size: row for row in report.chosen.per_size}))
    if report.chosen.per_corruption:
        blocks.append(_corruptions_table(report.chosen.per_corruption))
    blocks.extend(f"note: {printable(note)}" for note in report.notes)
    return "\n\n".join(blocks) + "\n"


def _title(report: Report) -> str:
    height, width = report.resolution
    return printable(f"{report.category}: {report.method}, {height} x {width} px, run {report.run}")


def _skipped_line(report: Report) -> list[str]:
    return [f"{len(report.skipped)} skipped as unreadable"] if report.skipped else []


def _scorings_table(report: Report) -> str:
    header = ["metric, %"]
    columns: list[Metrics] = []
    for scoring in report.scorings:
        header += [f"{scoring.name} (model)", f"{scoring.name} (original)"]
        columns += [scoring.metrics_model, scoring.metrics_original]
    rows = [[name, *(percent(getattr(column, name), "-") for column in columns)] for name in METRIC_NAMES]
    return aligned([header, *rows])


def _groups_table(kind: str, groups: Mapping[str, DefectRow] | Mapping[str, SizeRow]) -> str:
    shown = ("pixel_auroc_fpr30", "pixel_auroc", "pixel_aupro", "pixel_ap", "image_auroc")
    rows = [
        [printable(group), f"{row.found}/{row.images}"] + [percent(getattr(row.metrics, name), "-") for name in shown]
        for group, row in groups.items()
    ]
    return aligned([[kind, "found", *shown], *rows])


def _corruptions_table(corruptions: Sequence[CorruptionRow]) -> str:
    rows = [
        [
            row.corruption,
            percent(row.image_auroc, "-"),
            percent(row.image_auroc_loss, "-"),
            percent(row.false_alarm_rate),
            percent(row.false_alarm_rate_before),
        ]
        for row in corruptions
    ]
    return aligned([["good images with", "image_auroc", "loss", "false alarms", "before"], *rows])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )
