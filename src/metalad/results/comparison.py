"""A comparison of evaluated runs: their metrics side by side, and the images on which they differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64

from metalad.results.report import METRIC_NAMES, EvaluatedImage, Metrics, Report, ScoringReport
from metalad.results.report_text import aligned
from metalad.results.seeds import SeedRow, over_seeds, seed_table
from metalad.runtime.errors import ConfigError, DataError, printable
from metalad.visualization.plots import percent

Resolution = Literal["model", "original"]
RESOLUTIONS: tuple[Resolution, ...] = get_args(Resolution)
OCTAVES = 20.0
"""Limit of a score's distance from the threshold, in doublings: a score of 0 would be infinitely far."""

DISAGREEMENT = "the runs disagree"
EXTREMES = (
    "high scores for a good image",
    "low scores for a defective image",
    "high scores for a defective image",
    "low scores for a good image",
)


@dataclass(frozen=True)
class Choice:
    """An image to show, by its index in the first report, and the reason: `DISAGREEMENT` or an extreme."""

    index: int
    reason: str


@dataclass(frozen=True)
class Line:
    """A metric of every run, in their order; `best` holds the indices of the best runs, none if all are equal."""

    metric: str
    values: tuple[float | None, ...]
    best: frozenset[int]


@dataclass(frozen=True)
class Block:
    """All metrics of one scoring at one resolution, for all defects together and for each."""

    scoring: Literal["calibrated", "raw"]
    resolution: Resolution
    lines: tuple[Line, ...]
    per_defect: Mapping[str, tuple[Line, ...]]


@dataclass(frozen=True)
class Comparison:
    """Several runs evaluated on the same images, and the images selected to be shown.

    names: one for each run, all different.
    """

    names: tuple[str, ...]
    reports: tuple[Report, ...]
    choices: tuple[Choice, ...]

    @property
    def category(self) -> str:
        """The category that all runs were evaluated on."""
        return self.reports[0].category

    @property
    def images_by_run(self) -> tuple[tuple[EvaluatedImage, ...], ...]:
        """The images of each run, each in the order of the first run's images."""
        return tuple(_in_order_of(self.reports[0], report) for report in self.reports)

    @property
    def disagreements(self) -> int:
        """The number of images that some runs decide to be anomalous and others do not."""
        return int(_disagree(_decisions(self.images_by_run)).sum())

    @property
    def over_seeds(self) -> tuple[SeedRow, ...]:
        """Averages of the runs that differ in the seed alone, a row for each method; empty if there are none."""
        return over_seeds(self.names, self.reports)

    def blocks(self) -> Iterator[Block]:
        """Yield the metrics, those of the first run's own scoring first."""
        for name in (scoring.name for scoring in self.reports[0].scorings):
            scorings = [_named(report, name) for report in self.reports]
            for resolution in RESOLUTIONS:
                # Maps of different sizes are compared with masks of different sizes: no number is the better one.
                fair = resolution == "original" or len({report.resolution for report in self.reports}) == 1
                yield Block(name, resolution, _lines(_metrics(scorings, resolution), fair), {
                    defect: _lines(_defect_metrics(scorings, resolution, defect), fair)
                    for defect in (row.defect for row in self.reports[0].chosen.per_defect)
                })  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the short object of `--json`: each metric of each run, the best runs, and the images shown."""
        found: dict[str, Any] = {"metrics": {}, "best": {}, "per_defect": {}}
        for block in self.blocks():
            place = (block.scoring, block.resolution)
            _put(found["metrics"], place, {line.metric: self._by_name(line.values) for line in block.lines})
            _put(
                found["best"], place, {line.metric: [self.names[i] for i in sorted(line.best)] for line in block.lines}
            )
            _put(found["per_defect"], place, {
                defect: {line.metric: self._by_name(line.values) for line in lines}
                for defect, lines in block.per_defect.items()
            })  # fmt: skip
        return {
            "category": self.category,
            "images": len(self.reports[0].images),
            "disagreements": self.disagreements,
            "over_seeds": [row.to_json() for row in self.over_seeds],
            "runs": {name: _run(report) for name, report in zip(self.names, self.reports, strict=True)},
            **found,
            "shown": [self._shown(choice) for choice in self.choices],
        }

    def _by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, values, strict=True))

    def _shown(self, choice: Choice) -> dict[str, Any]:
        images = [each[choice.index] for each in self.images_by_run]
        return {
            "path": images[0].path,
            "defect": images[0].defect,
            "reason": choice.reason,
            "score": self._by_name([image.score for image in images]),
            "is_anomalous": self._by_name([image.is_anomalous for image in images]),
        }


def compared(names: Sequence[str], reports: Sequence[Report], images: int) -> Comparison:
    """Compare reports, and select `images` of their images to be shown; see `choose`.

    Raises:
        ConfigError: fewer than two. DataError: they are of different categories, or of different images.
    """
    if len(reports) < 2:
        raise ConfigError("one run cannot be compared with itself; give two or more")
    for name, report in zip(names, reports, strict=True):
        _require_same_images(names[0], reports[0], name, report)
    by_run = [_in_order_of(reports[0], report) for report in reports]
    octaves = np.array([
        [_octave(image, report.chosen.threshold) for image in mine]
        for mine, report in zip(by_run, reports, strict=True)
    ]).reshape(len(reports), -1)  # fmt: skip
    truth = np.array([image.label for image in by_run[0]], bool)
    choices = choose(octaves, _decisions(by_run), truth, images)
    return Comparison(tuple(names), tuple(reports), tuple(choices))


def choose(
    octaves: Float64[np.ndarray, "runs images"],
    decisions: Bool[np.ndarray, "runs images"],
    truth: Bool[np.ndarray, " images"],
    count: int,
) -> list[Choice]:
    """Select images by rule: first those that the runs decide differently, then extremes in turn.

    Disagreements are ordered by the smaller of two distances from the threshold, of the run furthest above and of the
    run furthest below. The extremes are the good images with the highest scores, the defective ones with the lowest,
    the defective ones with the highest and the good ones with the lowest; a third of the images are extremes if there
    are enough. No image is selected twice.

    Args:
        octaves: log2 of score over threshold, by run and image.
        decisions: whether a run decides that an image is anomalous.
        truth: whether it is anomalous.
        count: how many to select.
    """
    sureness, mean = np.minimum(octaves.max(0), -octaves.min(0)), octaves.mean(0)
    apart = [index for index in np.argsort(-sureness, kind="stable").tolist() if _disagree(decisions)[index]]
    rising = np.argsort(mean, kind="stable").tolist()
    good, defective = ([index for index in rising if truth[index] == kind] for kind in (False, True))
    turns = zip_longest(*(
        [Choice(index, reason) for index in order]
        for reason, order in zip(EXTREMES, (good[::-1], defective, defective[::-1], good), strict=True)
    ))  # fmt: skip
    kept = max(count - count // 3, count - (len(truth) - len(apart)))
    chosen = {index: Choice(index, DISAGREEMENT) for index in apart[:kept]}
    for choice in chain.from_iterable(turns):
        if len(chosen) >= count:
            break
        if choice is not None and not (choice.index in chosen or choice.index in apart):
            chosen[choice.index] = choice
    return list(chosen.values())


def comparison_table(comparison: Comparison) -> str:
    """Return the comparison for a terminal, ASCII if the names are; a star marks the best run of each line."""
    names = [printable(name) for name in comparison.names]
    counts = [report.chosen.confusion for report in comparison.reports]
    blocks = [
        f"{printable(comparison.category)}: {len(comparison.reports[0].images)} test images, "
        f"{len(names)} runs, which disagree on {comparison.disagreements}",
        aligned([
            ["run", *names],
            ["method", *(printable(report.method) for report in comparison.reports)],
            ["score", *(report.chosen.name for report in comparison.reports)],
            ["defective found", *(f"{each.tp}/{each.tp + each.fn}" for each in counts)],
            ["good rejected", *(f"{each.fp}/{each.fp + each.tn}" for each in counts)],
        ]),
    ]  # fmt: skip
    if rows := comparison.over_seeds:
        blocks.append(aligned([[printable(cell) for cell in line] for line in seed_table(rows)]))
    for block in comparison.blocks():
        title = f"{block.scoring} score, {block.resolution} resolution, %"
        blocks.append(aligned([[title, *names], *(_cells(line) for line in block.lines)]))
    return "\n\n".join(blocks) + "\n"


def _cells(line: Line) -> list[str]:
    values = (f"{percent(value, '-')}{'*' if i in line.best else ' '}" for i, value in enumerate(line.values))
    return [line.metric, *values]


# The same images


def _require_same_images(first: str, its: Report, second: str, other: Report) -> None:
    if its.category != other.category:
        raise DataError(
            f"{first} was evaluated on {its.category}, {second} on {other.category}; compare runs of one category"
        )
    mine, others = ({(each.path, each.label) for each in report.images} for report in (its, other))
    if mine != others:
        path, _ = min(mine ^ others)
        raise DataError(
            f"{first} and {second} were not evaluated on the same images: {path} is not the same in both; "
            "evaluate both on the same folder"
        )


def _in_order_of(first: Report, report: Report) -> tuple[EvaluatedImage, ...]:
    found = {image.path: image for image in report.images}
    return tuple(found[image.path] for image in first.images)


def _decisions(images: Sequence[Sequence[EvaluatedImage]]) -> Bool[np.ndarray, "runs images"]:
    return np.array([[image.is_anomalous for image in mine] for mine in images], bool).reshape(len(images), -1)


def _disagree(decisions: Bool[np.ndarray, "runs images"]) -> Bool[np.ndarray, " images"]:
    return np.asarray(decisions.any(0) & ~decisions.all(0))


def _octave(image: EvaluatedImage, threshold: float) -> float:
    if not (np.isfinite(threshold) and threshold > 0 and image.score > 0):
        return OCTAVES if image.is_anomalous else -OCTAVES
    return float(np.clip(np.log2(image.score / threshold), -OCTAVES, OCTAVES))


# Metrics side by side


def _named(report: Report, name: str) -> ScoringReport | None:
    return next((scoring for scoring in report.scorings if scoring.name == name), None)


def _metrics(scorings: Sequence[ScoringReport | None], resolution: Resolution) -> list[Metrics]:
    return [
        Metrics() if each is None else each.metrics_model if resolution == "model" else each.metrics_original
        for each in scorings
    ]


def _defect_metrics(scorings: Sequence[ScoringReport | None], resolution: Resolution, defect: str) -> list[Metrics]:
    rows = [next((row for row in each.per_defect if row.defect == defect), None) if each else None for each in scorings]
    return [
        Metrics() if row is None else row.metrics if resolution == "model" else row.metrics_original for row in rows
    ]


def _lines(metrics: Sequence[Metrics], fair: bool) -> tuple[Line, ...]:
    def line(name: str) -> Line:
        values = tuple(getattr(each, name) for each in metrics)
        return Line(name, values, best(values) if fair or name.startswith("image") else frozenset())

    return tuple(map(line, METRIC_NAMES))


def best(values: Sequence[float | None]) -> frozenset[int]:
    """Return the indices of the values that print as the highest; none if all print alike or only one is defined."""
    printed = {index: percent(value) for index, value in enumerate(values) if value is not None}
    if len(set(printed.values())) < 2:
        return frozenset()
    highest = max((value, index) for index, value in enumerate(values) if value is not None)[1]
    return frozenset(index for index, text in printed.items() if text == printed[highest])


def _run(report: Report) -> dict[str, Any]:
    short = report.flat()
    counts = report.to_json()["scorings"][0]["confusion"]
    kept = ("method", "resolution", "threshold", "wrong", "skipped")
    return {**{name: short[name] for name in kept}, "scoring": report.chosen.name, "confusion": counts}


def _put(into: dict[str, Any], place: tuple[str, str], value: Any) -> None:
    into.setdefault(place[0], {})[place[1]] = value
