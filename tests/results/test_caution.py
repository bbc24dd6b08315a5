"""Cautions about thresholds that too few good images support."""

import pytest

from metalad.results.caution import Caution, extrapolation_caution
from metalad.results.report import Confusion, Metrics, Report, ScoringReport
from metalad.results.report_text import report_table


def caution(images: int, rate: float) -> Caution | None:
    return extrapolation_caution(images, rate, 3.0, 1.5, (0.2, 1.25))


@pytest.mark.parametrize(
    ("images", "severity"),
    [(5, "severe"), (19, "severe"), (20, "warning"), (49, "warning"), (50, "caution"), (99, "caution")],
)
def test_the_severity_grows_as_images_get_fewer(images: int, severity: str) -> None:
    found = caution(images, 0.01)
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize(("images", "rate"), [(100, 0.01), (20, 0.05), (5, 0.2)])
def test_a_rate_that_the_images_support_gives_none(images: int, rate: float) -> None:
    assert caution(images, rate) is None


def test_the_text_states_what_is_wrong_and_what_to_do() -> None:
    assert str(caution(5, 0.01)) == (
        "SEVERE WARNING: the threshold of 3 for 1 % false alarms is an extrapolation from 5 good images, 2 times their "
        "highest score: most defects, or all, may pass as good. Give 100 good images or more, or use --false-alarms "
        "0.2 (threshold 1.25)"
    )


def test_very_few_scores_may_be_alike_by_chance() -> None:
    assert "may pass as good, or most good images be rejected. Give" in str(caution(4, 0.01))


def test_it_is_at_the_top_of_the_report_and_in_its_json() -> None:
    scoring = ScoringReport("raw", 3.0, Metrics(), Metrics(), Confusion(0, 0, 1, 1), false_alarm_rate=0.01)
    report = Report("plates", "stub", "run", (8, 8), 1.0, (scoring,), (), caution=caution(5, 0.01))
    assert report_table(report).splitlines()[0] == str(report.caution)
    assert report.flat()["caution"]["severity"] == "severe"
    assert Report.from_json(report.to_json()) == report
    assert str(report.caution) in report._repr_html_()
    without = Report("plates", "stub", "run", (8, 8), 1.0, (scoring,), ())
    assert "WARNING" not in report_table(without)
    assert without.flat()["caution"] is None
