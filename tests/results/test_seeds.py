"""Averages over seeds: against the statistics of the values; runs that differ in more stay apart."""

import statistics
from typing import Any

import pytest

from metalad.results.comparison import compared, comparison_table
from metalad.results.report import Confusion, EvaluatedImage, Metrics, Report, ScoringReport
from metalad.results.seeds import over_seeds

IMAGES = (
    EvaluatedImage("a.png", "good", False, 1.0, 1.0, False),
    EvaluatedImage("b.png", "bent", True, 3.0, 3.0, True),
)


def report(method: str, seed: int | None, auroc: float | None, **config: Any) -> Report:
    metrics = Metrics(image_auroc=auroc)
    scoring = ScoringReport("calibrated", 2.0, metrics, metrics, Confusion(3, 1, 9, 1))
    settings: dict[str, object] = {"config": config, "protocol": "default", "false_alarms": 0.01}
    if seed is not None:
        settings["seed"] = seed
    return Report("plates", method, method, (8, 8), 1.0, (scoring,), IMAGES, settings=settings)


def test_runs_that_differ_in_the_seed_alone_are_averaged() -> None:
    reports = [report("padim", 0, 0.9), report("metal", 0, 0.8), report("padim", 1, 0.95), report("padim", 2, 0.7)]
    padim, metal = over_seeds(["p0", "m", "p1", "p2"], reports)
    assert (padim.method, padim.runs, metal.runs) == ("padim", ("p0", "p1", "p2"), ("m",))
    assert padim.mean("image_auroc") == pytest.approx(statistics.mean([0.9, 0.95, 0.7]))
    assert padim.deviation("image_auroc") == pytest.approx(statistics.stdev([0.9, 0.95, 0.7]))
    assert (padim.mean("found"), padim.mean("false_alarms"), padim.deviation("found")) == (0.75, 0.1, 0)
    assert (metal.mean("image_auroc"), metal.deviation("image_auroc")) == (0.8, None)
    assert padim.text("image_auroc") == "85.00 ± 13.23"
    assert padim.text("pixel_ap") == "-"


@pytest.mark.parametrize(
    "other",
    [report("padim", 1, 0.5, channels=9), report("padim", 0, 0.5), report("padim", None, 0.5), report("metal", 1, 1.0)],
)
def test_other_runs_are_not_averaged(other: Report) -> None:
    assert over_seeds(["one", "two"], [report("padim", 0, 0.9), other]) == ()


def test_a_comparison_prints_a_line_for_each_method() -> None:
    runs = ["p0", "p1", "m"]
    comparison = compared(runs, [report("padim", 0, 0.9), report("padim", 1, 0.8), report("metal", 0, 0.7)], 0)
    (header, padim, metal) = next(
        block for block in comparison_table(comparison).split("\n\n") if "over seeds" in block
    ).splitlines()
    assert header.split()[-2:] == ["false", "alarms"]
    assert padim.split()[:5] == ["padim", "2", "85.00", "±", "7.07"]
    assert metal.split()[:3] == ["metal", "1", "70.00"]
    assert [row["runs"] for row in comparison.to_json()["over_seeds"]] == [["p0", "p1"], ["m"]]
    alone = compared(runs[:2], [report("padim", 0, 0.9), report("metal", 0, 0.7)], 0)
    assert "over seeds" not in comparison_table(alone)
    assert alone.to_json()["over_seeds"] == []
