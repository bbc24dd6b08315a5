"""Reports: verdict and threshold lines, JSON in both directions, and the table."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalad.results.report import (
    METRIC_NAMES,
    Confusion,
    CorruptionRow,
    DefectRow,
    EvaluatedImage,
    Metrics,
    Report,
    ScoringReport,
    SizeRow,
    threshold_line,
    verdict_line,
)
from metalad.results.report_text import report_table
from metalad.visualization.plots import Curve, percent

MODEL = Metrics(0.9863, 0.99, 0.91, 0.71, 0.7, 0.95, 0.97, 0.93)
ORIGINAL = dataclasses.replace(MODEL, pixel_auroc_fpr30=0.9812, pixel_ap=None)
RAW = dataclasses.replace(MODEL, pixel_auroc_fpr30=0.7301)


SMALL, LARGE = SizeRow(0.0, 0.001, 3, 1, MODEL), SizeRow(0.08, 1.0, 7, 7, RAW)
DARK = CorruptionRow("brightness -10 %", 20, 0.9, 0.05, 0.45, 0.05)
BLURRED = CorruptionRow("blur of 0.5 px", 20, None, None, 0.0, 0.05)


def scoring(**changes: object) -> ScoringReport:
    calibrated = ScoringReport(
        "calibrated", 2.5, MODEL, ORIGINAL, Confusion(63, 1, 19, 0), (DefectRow("scratch", 20, 19, MODEL),)
    )
    return dataclasses.replace(calibrated, **changes)  # type: ignore[arg-type]


def report(**changes: object) -> Report:
    images = (
        EvaluatedImage("test/scratch/000.png", "scratch", True, 9.0, 0.9, True),
        EvaluatedImage("test/good/000.png", "good", False, 3.0, 0.3, True),
        EvaluatedImage("test/good/001.png", "good", False, 1.0, 0.1, False),
    )
    raw = ScoringReport("raw", 0.25, RAW, RAW, Confusion(60, 0, 20, 3))
    whole = Report("bottle", "gradient", "run-1", (224, 320), 4.0, (scoring(), raw), images)
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def test_the_verdict_line_counts_found_and_rejected_images() -> None:
    assert verdict_line(report()) == "63 of 63 defective found, 1 of 20 good rejected"


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        (Confusion(0, 2, 8, 0), "2 of 10 good rejected"),
        (Confusion(3, 0, 0, 1), "3 of 4 defective found"),
        (Confusion(0, 0, 0, 0), "no image was evaluated"),
    ],
)
def test_the_verdict_line_omits_a_class_without_images(counts: Confusion, line: str) -> None:
    assert verdict_line(report(scorings=(scoring(confusion=counts),))) == line


def test_the_threshold_line_contains_the_false_alarm_rate_if_there_is_one() -> None:
    assert threshold_line(report()) == "threshold 2.5 on the calibrated score"
    wanted = report(scorings=(scoring(false_alarm_rate=0.01),))
    assert threshold_line(wanted).endswith("set to reject 1 % of good images")


def test_flat_has_the_metrics_of_the_deciding_scoring_at_the_top_level() -> None:
    flat = report(skipped=(("bad.png", "not an image"),)).flat()
    assert {name: flat[name] for name in METRIC_NAMES} == dataclasses.asdict(MODEL)
    assert flat["original"]["pixel_auroc_fpr30"] == 0.9812
    assert flat["original"]["pixel_ap"] is None
    assert flat["raw"]["pixel_auroc_fpr30"] == 0.7301
    assert flat["per_defect"] == {"scratch": dataclasses.asdict(MODEL)}
    assert (flat["threshold"], flat["resolution"]) == (2.5, [224, 320])
    assert (flat["images"], flat["wrong"], flat["skipped"]) == (3, 1, 1)
    assert (flat["method"], flat["category"]) == ("gradient", "bottle")


def test_flat_has_null_for_a_missing_raw_scoring() -> None:
    assert report(scorings=(scoring(),)).flat()["raw"] is None


def test_a_report_is_equal_after_json() -> None:
    whole = report(
        scorings=(
            scoring(
                threshold=math.inf,
                curves=(Curve("pixel_roc", (0.0, 1.0), (0.5, 1.0), 0.75),),
                per_size=(SMALL, LARGE),
                per_corruption=(DARK, BLURRED),
            ),
        ),
        skipped=(("bad.png", "not an image"),),
        settings={"seed": 3, "config": {"depth": 1}},
        notes=("a note",),
        data="/images/bottle",
    )
    stored = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    assert Report.from_json(stored | {"from a later version": 1}) == whole
    # An entry that an earlier version did not write gets its default.
    assert Report.from_json({name: stored[name] for name in stored if name != "data"}).data is None
    earlier = [{name: part[name] for name in part if not name.startswith("per_")} for part in stored["scorings"]]
    (read,) = Report.from_json(stored | {"scorings": [{**part, "per_defect": []} for part in earlier]}).scorings
    assert (read.per_size, read.per_corruption) == ((), ())


def old_names(value: object) -> object:
    """Return JSON of a report with the keys of metalad 0.1."""
    renamed = {
        "images": "verdicts",
        "label": "abnormal_truth",
        "is_anomalous": "abnormal",
        "per_corruption": "per_nuisance",
        "corruption": "nuisance",
    }
    if isinstance(value, dict):
        # The rows of defects and sizes have a count `images`, which had the same name.
        return {
            renamed.get(key, key) if not isinstance(entry, int) or isinstance(entry, bool) else key: old_names(entry)
            for key, entry in value.items()
        }
    return [old_names(entry) for entry in value] if isinstance(value, list) else value


def test_a_report_of_metalad_0_1_is_read() -> None:
    whole = report(scorings=(scoring(per_size=(SMALL,), per_corruption=(DARK, BLURRED)),))
    stored = old_names(json.loads(json.dumps(whole.to_json())))
    assert isinstance(stored, dict)
    assert set(stored["verdicts"][0]) == {"path", "defect", "abnormal_truth", "score", "raw_score", "abnormal"}
    assert stored["scorings"][0]["per_nuisance"][0]["nuisance"] == "brightness -10 %"
    assert Report.from_json(stored) == whole


def test_maps_are_neither_written_nor_compared() -> None:
    with_maps = report(maps=(np.ones((2, 3), np.float32),))
    assert with_maps == report()
    assert with_maps.to_json() == report().to_json()


def test_metrics_and_threshold_are_those_of_the_deciding_scoring() -> None:
    assert (report().metrics, report().threshold, report().wrong) == (MODEL, 2.5, 1)


def test_a_notebook_shows_verdict_metrics_and_curves() -> None:
    curve = Curve("pixel_roc", (0.0, 1.0), (0.5, 1.0), 0.75)
    shown = report(category="<b>", notes=("a <note>",), scorings=(scoring(curves=(curve,)),))._repr_html_()
    assert "<h3>&lt;b&gt;: 63 of 63 defective found, 1 of 20 good rejected</h3>" in shown
    assert "<p>a &lt;note&gt;</p>" in shown
    assert "<tr><th>pixel_auroc_fpr30</th><td>98.63 %</td></tr>" in shown
    assert shown.count("<svg") == 1


@pytest.mark.parametrize("broken", [{}, {"scorings": []}, {"scorings": [{}]}, {"images": None}, {"resolution": 1}])
def test_invalid_json_is_refused(broken: dict[str, object]) -> None:
    stored = json.loads(json.dumps(report().to_json()))
    with pytest.raises(ValueError, match=r"not a report|needs at least one scoring"):
        Report.from_json(stored | broken if broken else {})


@given(st.floats() | st.none(), st.floats())
def test_json_never_contains_nan_or_infinity(metric: float | None, threshold: float) -> None:
    changed = scoring(
        metrics_model=Metrics(pixel_ap=metric),
        threshold=threshold,
        curves=(Curve("pixel_roc", (0.0, threshold), (0.0, 1.0), metric),),
    )
    whole = report(scorings=(changed,), settings={"seed": np.int64(3), "rate": np.float32("nan"), "nested": [metric]})
    for value in (whole.to_json(), whole.flat()):
        json.dumps(value, allow_nan=False)
    stored = whole.flat()["pixel_ap"]
    assert stored == metric if metric is not None and math.isfinite(metric) else stored is None
    assert whole.to_json()["settings"]["seed"] == 3


def test_json_contains_every_field_but_the_maps() -> None:
    whole = report(scorings=(scoring(curves=(Curve("pixel_roc", (0.0, 1.0), (0.0, 1.0), 0.5),)),))
    value = whole.to_json()
    assert json.loads(json.dumps(value)) == value
    assert set(value) == {entry.name for entry in dataclasses.fields(Report)} - {"maps"}
    assert value["scorings"][0]["curves"][0] == {"name": "pixel_roc", "x": [0, 1], "y": [0, 1], "area": 0.5}
    assert value["images"][0] == {
        "path": "test/scratch/000.png",
        "defect": "scratch",
        "label": True,
        "score": 9.0,
        "raw_score": 0.9,
        "is_anomalous": True,
    }


def test_a_file_name_that_is_not_utf8_can_be_written_as_json() -> None:
    image = EvaluatedImage("test/caf\udce9.png", "good", False, 1.0, 1.0, False)
    text = json.dumps(report(images=(image,)).to_json(), ensure_ascii=False)
    assert r"caf\\udce9.png" in text.encode("utf-8").decode("utf-8")


def test_the_table_shows_both_scorings_at_both_resolutions_and_a_row_per_defect() -> None:
    lines = report_table(report()).splitlines()
    row = next(line for line in lines if line.startswith("pixel_auroc_fpr30"))
    assert row.split() == ["pixel_auroc_fpr30", "98.63", "98.12", "73.01", "73.01"]
    assert next(line for line in lines if line.startswith("scratch")).split()[:3] == [
        "scratch",
        "19/20",
        "98.63",
    ]
    assert "63 of 63 defective found, 1 of 20 good rejected" in lines


def test_the_table_has_a_row_per_size_and_per_corruption() -> None:
    lines = report_table(
        report(scorings=(scoring(per_size=(SMALL, LARGE), per_corruption=(DARK, BLURRED)),))
    ).splitlines()
    rows = {line.split("  ")[0]: line.split()[-7:] for line in lines}
    assert rows["below 0.1 %"][-6:-4] == ["1/3", "98.63"]
    assert rows["8 % and more"][-6:-4] == ["7/7", "73.01"]
    assert rows["brightness -10 %"][-4:] == ["90.00", "5.00", "45.00", "5.00"]
    assert rows["blur of 0.5 px"][-4:] == ["-", "-", "0.00", "5.00"]
    assert "\n".join(lines).isascii()
    assert "false alarms" not in report_table(report())


def test_a_size_is_printed_in_percent_of_the_image() -> None:
    middle = dataclasses.replace(SMALL, least=0.005, below=0.02)
    assert [row.size for row in (SMALL, middle, LARGE)] == ["below 0.1 %", "0.5 to 2 %", "8 % and more"]


def test_flat_has_sizes_and_corruptions_of_the_deciding_scoring() -> None:
    flat = report(scorings=(scoring(per_size=(SMALL,), per_corruption=(DARK,)),)).flat()
    assert flat["per_size"] == [dataclasses.asdict(SMALL)]
    assert flat["per_corruption"] == [dataclasses.asdict(DARK)]
    assert report().flat()["per_corruption"] == []


def test_the_table_shows_an_undefined_metric_as_a_dash_and_is_ascii() -> None:
    table = report_table(report())
    row = next(line for line in table.splitlines() if line.startswith("pixel_ap"))
    assert row.split() == ["pixel_ap", "71.00", "-", "71.00", "71.00"]
    assert table.isascii()


def test_escape_sequences_in_a_folder_name_are_not_printed() -> None:
    hostile = scoring(per_defect=(DefectRow("\x1b[2Jboom\n", 1, 1, MODEL),))
    assert "\x1b" not in report_table(report(scorings=(hostile,), category="\x1b]0;x\x07"))


def test_percent_of_an_undefined_value_is_a_dash() -> None:
    assert (percent(None), percent(math.nan), percent(0.98634), percent(1.0)) == ("–", "–", "98.63", "100.00")


def test_a_report_without_a_scoring_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one scoring"):
        report(scorings=())
