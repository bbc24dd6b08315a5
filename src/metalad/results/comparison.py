"""What a comparison of evaluated runs found: their metrics side by side, and which images tell the runs apart."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64

from metalad.results.report import METRIC_NAMES, Metrics, Report, Scoring, Verdict, aligned, percent
from metalad.runtime.errors import ConfigError, DataError, printable

Resolution = Literal["model", "original"]
RESOLUTIONS: tuple[Resolution, ...] = get_args(Resolution)
OCTAVES = 20.0
"""Scores count as at most this many doublings from the threshold: one without a score above 0 is none the worse."""

DISAGREEMENT = "the runs disagree"
EXTREMES = (
    "high scores for a good image",
    "low scores for a defective image",
    "high scores for a defective image",
    "low scores for a good image",
)


@dataclass(frozen=True)
class Choice:
    """An image to show, by its place among the first report's verdicts, and why: `DISAGREEMENT` or an extreme."""

    index: int
    reason: str


@dataclass(frozen=True)
class Line:
    """A metric of every run, in their order; `best` are the places of the best, none where none stands out."""

    metric: str
    values: tuple[float | None, ...]
    best: frozenset[int]


@dataclass(frozen=True)
class Block:
    """All metrics of one scoring at one resolution: of all defects, and of each."""

    scoring: Literal["calibrated", "raw"]
    resolution: Resolution
    lines: tuple[Line, ...]
    per_defect: Mapping[str, tuple[Line, ...]]


@dataclass(frozen=True)
class Comparison:
    """Several runs evaluated on the same images, and the images chosen to be shown.

    names: one a run, all different.
    """

    names: tuple[str, ...]
    reports: tuple[Report, ...]
    choices: tuple[Choice, ...]

    @property
    def category(self) -> str:
        """What all runs were evaluated on."""
        return self.reports[0].category

    @property
    def verdicts(self) -> tuple[tuple[Verdict, ...], ...]:
        """The verdicts of each run, each in the order of the first run's images."""
        return tuple(_in_order_of(self.reports[0], report) for report in self.reports)

    @property
    def disagreements(self) -> int:
        """The number of images that some runs call abnormal and some do not."""
        return int(_disagree(_decisions(self.verdicts)).sum())

    def blocks(self) -> Iterator[Block]:
        """Yield the metrics, those of the first run's own scoring first."""
        for name in (scoring.name for scoring in self.reports[0].scorings):
            scorings = [_named(report, name) for report in self.reports]
            for resolution in RESOLUTIONS:
                # Maps of different sizes are compared with masks of different sizes: neither number is the better.
                fair = resolution == "original" or len({report.resolution for report in self.reports}) == 1
                yield Block(name, resolution, _lines(_metrics(scorings, resolution), fair), {
                    defect: _lines(_defect_metrics(scorings, resolution, defect), fair)
                    for defect in (row.defect for row in self.reports[0].chosen.per_defect)
                })  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the short object of `--json`: every metric with a value a run, the best runs, the images chosen."""
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
            "images": len(self.reports[0].verdicts),
            "disagreements": self.disagreements,
            "runs": {name: _run(report) for name, report in zip(self.names, self.reports, strict=True)},
            **found,
            "shown": [self._shown(choice) for choice in self.choices],
        }

    def _by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, values, strict=True))

    def _shown(self, choice: Choice) -> dict[str, Any]:
        verdicts = [each[choice.index] for each in self.verdicts]
        return {
            "path": verdicts[0].path,
            "defect": verdicts[0].defect,
            "reason": choice.reason,
            "score": self._by_name([verdict.score for verdict in verdicts]),
            "abnormal": self._by_name([verdict.abnormal for verdict in verdicts]),
        }


def compared(names: Sequence[str], reports: Sequence[Report], images: int) -> Comparison:
    """Put reports side by side, and choose `images` of their images to be shown; see `choose`.

    Raises:
        ConfigError: fewer than two. DataError: they are of different categories, or of different images.
    """
    if len(reports) < 2:
        raise ConfigError("one run has nothing to be compared with; give two or more")
    for name, report in zip(names, reports, strict=True):
        _require_same_images(names[0], reports[0], name, report)
    verdicts = [_in_order_of(reports[0], report) for report in reports]
    octaves = np.array([
        [_octave(verdict, report.chosen.threshold) for verdict in mine]
        for mine, report in zip(verdicts, reports, strict=True)
    ]).reshape(len(reports), -1)  # fmt: skip
    truth = np.array([verdict.abnormal_truth for verdict in verdicts[0]], bool)
    choices = choose(octaves, _decisions(verdicts), truth, images)
    return Comparison(tuple(names), tuple(reports), tuple(choices))


def choose(
    octaves: Float64[np.ndarray, "runs images"],
    decisions: Bool[np.ndarray, "runs images"],
    truth: Bool[np.ndarray, " images"],
    count: int,
) -> list[Choice]:
    """Choose images by rule: those that the runs decide differently, surest first, then extremes by turns.

    A disagreement is as sure as the less sure side: as far from its threshold as that side's furthest run.
    The extremes are the good images of highest scores, the defective of lowest, the defective of highest and the good
    of lowest; they keep a third of the places where there are enough. No image is chosen twice.

    Args:
        octaves: log2 of score over threshold, by run and image.
        decisions: whether a run calls an image abnormal.
        truth: whether it is.
        count: how many to choose.
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
    """The comparison for a terminal, ASCII if the names are: the best run of each line has a star."""
    names = [printable(name) for name in comparison.names]
    counts = [report.chosen.confusion for report in comparison.reports]
    blocks = [
        f"{printable(comparison.category)}: {len(comparison.reports[0].verdicts)} test images, "
        f"{len(names)} runs, which disagree on {comparison.disagreements}",
        aligned([
            ["run", *names],
            ["method", *(printable(report.method) for report in comparison.reports)],
            ["score", *(report.chosen.name for report in comparison.reports)],
            ["defective found", *(f"{each.tp}/{each.tp + each.fn}" for each in counts)],
            ["good rejected", *(f"{each.fp}/{each.fp + each.tn}" for each in counts)],
        ]),
    ]  # fmt: skip
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
    mine, others = ({(each.path, each.abnormal_truth) for each in report.verdicts} for report in (its, other))
    if mine != others:
        path, _ = min(mine ^ others)
        raise DataError(
            f"{first} and {second} were not evaluated on the same images: {path} is not the same in both; "
            "evaluate both on the same folder"
        )


def _in_order_of(first: Report, report: Report) -> tuple[Verdict, ...]:
    found = {verdict.path: verdict for verdict in report.verdicts}
    return tuple(found[verdict.path] for verdict in first.verdicts)


def _decisions(verdicts: Sequence[Sequence[Verdict]]) -> Bool[np.ndarray, "runs images"]:
    return np.array([[verdict.abnormal for verdict in mine] for mine in verdicts], bool).reshape(len(verdicts), -1)


def _disagree(decisions: Bool[np.ndarray, "runs images"]) -> Bool[np.ndarray, " images"]:
    return np.asarray(decisions.any(0) & ~decisions.all(0))


def _octave(verdict: Verdict, threshold: float) -> float:
    if not (np.isfinite(threshold) and threshold > 0 and verdict.score > 0):
        return OCTAVES if verdict.abnormal else -OCTAVES
    return float(np.clip(np.log2(verdict.score / threshold), -OCTAVES, OCTAVES))


# Metrics side by side


def _named(report: Report, name: str) -> Scoring | None:
    return next((scoring for scoring in report.scorings if scoring.name == name), None)


def _metrics(scorings: Sequence[Scoring | None], resolution: Resolution) -> list[Metrics]:
    return [
        Metrics() if each is None else each.metrics_model if resolution == "model" else each.metrics_original
        for each in scorings
    ]


def _defect_metrics(scorings: Sequence[Scoring | None], resolution: Resolution, defect: str) -> list[Metrics]:
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
    """The places of the highest values, of all that print alike; none where all do, or fewer than two are defined."""
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
