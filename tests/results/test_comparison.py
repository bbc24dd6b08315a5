"""Comparisons: the selected images, the best values, and what cannot be compared."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalad.results.comparison import DISAGREEMENT, EXTREMES, best, choose, compared, comparison_table
from metalad.results.report import METRIC_NAMES, Confusion, DefectRow, EvaluatedImage, Metrics, Report, ScoringReport
from metalad.runtime.errors import ConfigError, DataError


def report(scores: list[float], *, value: float = 0.5, threshold: float = 2.0, size: int = 32) -> Report:
    """Return a report on images that are alternately good and defective."""
    images = tuple(
        EvaluatedImage(
            f"test/{index}.png", "hole" if index % 2 else "good", bool(index % 2), score, score, score > threshold
        )
        for index, score in enumerate(scores)
    )
    metrics = Metrics(**dict.fromkeys(METRIC_NAMES, value))
    scorings = tuple(
        ScoringReport(
            name, threshold, metrics, metrics, Confusion(1, 0, 1, 0), (DefectRow("hole", 1, 1, metrics, metrics),)
        )
        for name in ("calibrated", "raw")
    )
    return Report("cookie", "metal", "run", (size, size), 4.0, scorings, images)


RUNS = [report([1.0, 8.0, 1.0, 3.0]), report([3.0, 4.0, 1.5, 0.5], value=0.75)]


# Selected images


@given(st.data())
def test_disagreements_come_first_in_order_of_certainty_and_no_image_comes_twice(data: st.DataObject) -> None:
    runs, images = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 9))
    count = data.draw(st.integers(0, 12))
    numbers = st.lists(st.integers(-40, 40), min_size=runs * images, max_size=runs * images)
    octaves = np.array(data.draw(numbers), float).reshape(runs, images) / 8
    truth = np.array(data.draw(st.lists(st.booleans(), min_size=images, max_size=images)))
    decisions = octaves > 0
    choices = choose(octaves, decisions, truth, count)
    chosen = [choice.index for choice in choices]
    assert len(set(chosen)) == len(chosen) == min(count, images)

    apart = {index for index in range(images) if len(set(decisions[:, index])) == 2}
    first = [choice.index for choice in choices if choice.reason == DISAGREEMENT]
    assert chosen[: len(first)] == first
    assert {index for index in chosen if index in apart} == set(first)
    surest = [min(max(octaves[:, index]), -min(octaves[:, index])) for index in first]
    assert surest == sorted(surest, reverse=True)
    left = [min(max(octaves[:, index]), -min(octaves[:, index])) for index in apart - set(first)]
    assert not left or not first or max(left) <= surest[-1]
    # At most a third of the selected images are extremes instead of disagreements.
    assert not left or len(first) >= count - count // 3


def test_the_four_extremes_alternate() -> None:
    octaves = np.log2(np.array([[9.0, 1.1, 8.0, 2.0, 3.0, 4.0]] * 2))
    truth = np.array([False, True, False, True, False, True])
    choices = choose(octaves, octaves > 0, truth, 6)
    assert [(choice.index, choice.reason) for choice in choices] == [
        (0, EXTREMES[0]),
        (1, EXTREMES[1]),
        (5, EXTREMES[2]),
        (4, EXTREMES[3]),
        (2, EXTREMES[0]),
        (3, EXTREMES[1]),
    ]


def test_scores_are_compared_with_the_threshold_of_their_run() -> None:
    doubled = dataclasses.replace(
        report([2 * score for score in (1.0, 8.0, 1.0, 3.0)], threshold=4.0), run="the same, scaled by 2"
    )
    assert compared(["a", "b"], [RUNS[0], doubled], 9).disagreements == 0
    comparison = compared(["a", "b"], RUNS, 2)
    assert comparison.disagreements == 2
    assert [choice.index for choice in comparison.choices] == [0, 3]  # log2: 0.58 and -1; 0.58 and -2


@pytest.mark.parametrize("threshold", [math.inf, 0.0])
def test_an_infinite_or_zero_threshold_still_decides(threshold: float) -> None:
    odd = report([0.0, 8.0, 1.0, 3.0], threshold=threshold)
    comparison = compared(["a", "b"], [RUNS[0], odd], 4)
    assert len(comparison.choices) == 4
    assert json.loads(json.dumps(comparison.to_json(), allow_nan=False))["runs"]["b"]["method"] == "metal"


# Best values


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=6))
def test_the_best_are_the_highest_and_all_that_print_the_same(values: list[float | None]) -> None:
    defined = [value for value in values if value is not None]
    marked = best(values)
    printed = {f"{100 * value:.2f}" for value in defined}
    assert bool(marked) == (len(printed) > 1)
    if marked:
        assert {f"{100 * (values[i] or 0):.2f}" for i in marked} == {f"{100 * max(defined):.2f}"}
        assert all(i in marked for i, value in enumerate(values) if value == max(defined))


def test_pixel_metrics_of_maps_of_different_sizes_are_not_ranked() -> None:
    other = report([3.0, 4.0, 1.5, 0.5], value=0.75, size=64)
    for runs, ranked in ((RUNS, True), ([RUNS[0], other], False)):
        for block in compared(["a", "b"], runs, 0).blocks():
            for line in (*block.lines, *block.per_defect["hole"]):
                fair = ranked or block.resolution == "original" or line.metric.startswith("image")
                assert line.best == (frozenset({1}) if fair else frozenset()), (block, line)


def test_the_table_and_the_json_contain_every_value() -> None:
    comparison = compared(["one", "two"], RUNS, 3)
    text = comparison_table(comparison)
    assert "cookie: 4 test images, 2 runs, which disagree on 2\n" in text
    assert text.count("75.00*") == text.count("50.00 ") == 4 * len(METRIC_NAMES)
    assert text.isascii()
    found = json.loads(json.dumps(comparison.to_json()))
    assert found["metrics"]["raw"]["original"]["pixel_ap"] == {"one": 0.5, "two": 0.75}
    assert found["per_defect"]["calibrated"]["model"]["hole"]["image_auroc"] == {"one": 0.5, "two": 0.75}
    assert found["best"]["raw"]["model"]["image_ap"] == ["two"]
    assert found["shown"][0] == {
        "path": "test/0.png",
        "defect": "good",
        "reason": DISAGREEMENT,
        "score": {"one": 1.0, "two": 3.0},
        "is_anomalous": {"one": False, "two": True},
    }


# Runs that cannot be compared


def test_the_images_must_be_the_same_in_any_order() -> None:
    reversed_ = dataclasses.replace(RUNS[1], images=RUNS[1].images[::-1])
    assert compared(["a", "b"], [RUNS[0], reversed_], 4) == dataclasses.replace(
        compared(["a", "b"], RUNS, 4), reports=(RUNS[0], reversed_)
    )
    fewer = dataclasses.replace(RUNS[1], images=RUNS[1].images[:-1])
    with pytest.raises(DataError, match=r"a and b were not evaluated on the same images: test/3\.png is not"):
        compared(["a", "b"], [RUNS[0], fewer], 4)


def test_runs_of_different_categories_and_a_single_run_are_refused() -> None:
    other = dataclasses.replace(RUNS[1], category="bottle")
    with pytest.raises(DataError, match="a was evaluated on cookie, b on bottle; compare runs of one category"):
        compared(["a", "b"], [RUNS[0], other], 4)
    with pytest.raises(ConfigError, match="one run cannot be compared with itself"):
        compared(["a"], RUNS[:1], 4)
