"""The histogram of scores: counts, positions on the axis, and special values."""

import math

import pytest

from metalad.results.pages.score_plot import BINS, ScorePlot, score_plot
from metalad.results.report import Confusion, EvaluatedImage, Metrics, Report, ScoringReport


def plot_of(good: list[float], defective: list[float], threshold: float) -> ScorePlot:
    scores = [(score, False) for score in good] + [(score, True) for score in defective]
    images = tuple(
        EvaluatedImage(f"{index}.png", "", label, score, score, False) for index, (score, label) in enumerate(scores)
    )
    scoring = ScoringReport("raw", threshold, Metrics(), Metrics(), Confusion(0, 0, 0, 0))
    return score_plot(Report("c", "m", "r", (8, 8), 0.0, (scoring,), images))


def test_positions_follow_the_axis() -> None:
    linear = plot_of([1.0, 2.0, 3.0], [3.0, 5.0], 4.0)
    assert not linear.logarithmic
    assert linear.position(3.0) == pytest.approx(0.5)
    assert 0 < linear.position(1.0) < linear.position(4.0) < linear.position(5.0) < 1
    decades = plot_of([0.01, 0.02], [100.0], 1.0)
    assert decades.logarithmic
    assert decades.position(1.0) == pytest.approx(0.5)
    assert decades.position(0.0) == 0
    assert linear.position(math.inf) == linear.position(math.nan) == 1


def test_bars_contain_every_image_where_its_score_is() -> None:
    plot = plot_of([1.0, 1.0, 2.0], [2.0, 5.0], 4.0)
    assert plot.most == 2
    assert [(bar.good, bar.defective) for bar in plot.bars] == [(1.0, 0.0), (0.5, 0.5), (0.0, 0.5)]
    for bar, score in zip(plot.bars, (1.0, 2.0, 5.0), strict=True):
        assert bar.left <= plot.position(score) <= bar.left + bar.width == pytest.approx(bar.left + 1 / BINS)
    assert plot.bars[1].title.endswith(": 1 good, 1 defective")


def test_one_image_among_thousands_stays_visible() -> None:
    assert plot_of([1.0] * 5000, [2.0], 1.5).bars[-1].defective == 0.02


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 10.0, ["0", "2", "4", "6", "8", "10"]),
        (41.0, 43.0, ["41", "41.5", "42", "42.5", "43"]),
        (1.0, 100.0, ["1", "2", "5", "10", "20", "50", "100"]),
        (1e-8, 1e8, None),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, ticks: list[str] | None) -> None:
    plot = plot_of([low], [high], low)
    texts = [text for _, text in plot.ticks]
    assert 3 <= len(texts) <= 8
    assert ticks is None or texts == ticks
    for position, text in plot.ticks:
        assert position == pytest.approx(plot.position(float(text)))


@pytest.mark.parametrize(
    ("good", "defective", "threshold", "bars"),
    [
        ([], [], 1.0, 0),
        ([], [], math.inf, 0),
        ([2.0, 2.0], [], 2.0, 1),
        ([0.0], [0.0], 0.0, 1),
        ([1.0, math.inf], [math.nan], math.inf, 1),
        ([-5.0], [1e6], 3.0, 2),
        ([1e-38], [1e11], 1.0, 2),
    ],
)
def test_special_scores_give_a_plot(good: list[float], defective: list[float], threshold: float, bars: int) -> None:
    plot = plot_of(good, defective, threshold)
    assert len(plot.bars) == bars
    assert plot.low < plot.high
    assert 0 <= plot.position(threshold) <= 1
    assert all(0 <= bar.left <= bar.left + bar.width <= 1 + 1e-9 for bar in plot.bars)
    assert all(0 <= position <= 1 for position, _ in plot.ticks)
