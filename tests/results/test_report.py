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
    Metrics,
    Report,
    ScoringReport,
    SizeRow,
    EvaluatedImage,
)
from metalad.visualization.plots import Curve, percent
from metalad.results.report_text import report_table
from metalad.results.report import threshold_line, verdict_line

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
    verdicts = (
        EvaluatedImage("test/scratch/000.png", "scratch", True, 9.0, 0.9, True),
        EvaluatedImage("test/good/000.png", "good", False, 3.0, 0.3, True),
        EvaluatedImage("test/good/001.png", "good", False, 1.0, 0.1, False),
    )
    raw = ScoringReport("raw", 0.25, RAW, RAW, Confusion(60, 0, 20, 3))
    whole = Report("bottle", "gradient", "run-1", (224, 320), 4.0, (scoring(), raw), verdicts)
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def test_the_verdict_line_says_what_was_found_and_what_was_rejected() -> None:
    assert verdict_line(report()) == "63 of 63 defective found, 1 of 20 good rejected"


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        (Confusion(0, 2, 8, 0), "2 of 10 good rejected"),
        (Confusion(3, 0, 0, 1), "3 of 4 defective found"),
        (Confusion(0, 0, 0, 0), "no image was judged"),
    ],
)
def test_the_verdict_line_leaves_out_a_class_that_was_not_tested(counts: Confusion, line: str) -> None:
    assert verdict_line(report(scorings=(scoring(confusion=counts),))) == line


def test_the_threshold_line_names_the_false_alarm_rate_only_when_one_was_wanted() -> None:
    assert threshold_line(report()) == "threshold 2.5 on the calibrated score"
    wanted = report(scorings=(scoring(false_alarm_rate=0.01),))
    assert threshold_line(wanted).endswith("set to reject 1 % of good images")


def test_flat_has_the_chosen_metrics_on_top_and_the_others_below() -> None:
    flat = report(skipped=(("bad.png", "not an image"),)).flat()
    assert {name: flat[name] for name in METRIC_NAMES} == dataclasses.asdict(MODEL)
    assert flat["original"]["pixel_auroc_fpr30"] == 0.9812
    assert flat["original"]["pixel_ap"] is None
    assert flat["raw"]["pixel_auroc_fpr30"] == 0.7301
    assert flat["per_defect"] == {"scratch": dataclasses.asdict(MODEL)}
    assert (flat["threshold"], flat["resolution"]) == (2.5, [224, 320])
    assert (flat["images"], flat["wrong"], flat["skipped"]) == (3, 1, 1)
    assert (flat["method"], flat["category"]) == ("gradient", "bottle")


def test_flat_has_null_for_a_raw_scoring_that_was_not_made() -> None:
    assert report(scorings=(scoring(),)).flat()["raw"] is None


def test_a_report_survives_json() -> None:
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
    assert Report.from_json(stored | {"of a later version": 1}) == whole
    # What an earlier version did not write has its default.
    assert Report.from_json({name: stored[name] for name in stored if name != "data"}).data is None
    earlier = [{name: part[name] for name in part if not name.startswith("per_")} for part in stored["scorings"]]
    (read,) = Report.from_json(stored | {"scorings": [{**part, "per_defect": []} for part in earlier]}).scorings
    assert (read.per_size, read.per_corruption) == ((), ())


@pytest.mark.parametrize("broken", [{}, {"scorings": []}, {"scorings": [{}]}, {"verdicts": None}, {"resolution": 1}])
def test_what_is_no_report_is_refused(broken: dict[str, object]) -> None:
    stored = json.loads(json.dumps(report().to_json()))
    with pytest.raises(ValueError, match=r"not a report|needs at least one scoring"):
        Report.from_json(stored | broken if broken else {})


@given(st.floats() | st.none(), st.floats())
def test_json_never_holds_nan_or_infinity(metric: float | None, threshold: float) -> None:
    changed = scoring(
        metrics_model=Metrics(pixel_ap=metric),
        threshold=threshold,
        curves=(Curve("pixel_roc", (0.0, threshold), (0.0, 1.0), metric),),
    )
    whole = report(scorings=(changed,), settings={"seed": np.int64(3), "rate": np.float32("nan"), "nested": [metric]})
    for value in (whole.to_json(), whole.flat()):
        json.dumps(value, allow_nan=False)
    kept = whole.flat()["pixel_ap"]
    assert kept == metric if metric is not None and math.isfinite(metric) else kept is None
    assert whole.to_json()["settings"]["seed"] == 3


def test_json_keeps_every_field_and_survives_a_round_trip() -> None:
    whole = report(scorings=(scoring(curves=(Curve("pixel_roc", (0.0, 1.0), (0.0, 1.0), 0.5),)),))
    value = whole.to_json()
    assert json.loads(json.dumps(value)) == value
    assert set(value) == {entry.name for entry in dataclasses.fields(Report)}
    assert value["scorings"][0]["curves"][0] == {"name": "pixel_roc", "x": [0, 1], "y": [0, 1], "area": 0.5}
    assert value["verdicts"][0]["path"] == "test/scratch/000.png"


def test_a_file_name_that_is_not_utf8_can_still_be_written_as_json() -> None:
    verdict = EvaluatedImage("test/caf\udce9.png", "good", False, 1.0, 1.0, False)
    text = json.dumps(report(images=(verdict,)).to_json(), ensure_ascii=False)
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


def test_the_table_has_a_row_per_size_and_per_nuisance() -> None:
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


def test_a_size_is_said_in_percent_of_the_image() -> None:
    middle = dataclasses.replace(SMALL, least=0.005, below=0.02)
    assert [row.size for row in (SMALL, middle, LARGE)] == ["below 0.1 %", "0.5 to 2 %", "8 % and more"]


def test_flat_has_sizes_and_nuisances_of_the_chosen_scoring() -> None:
    flat = report(scorings=(scoring(per_size=(SMALL,), per_corruption=(DARK,)),)).flat()
    assert flat["per_size"] == [dataclasses.asdict(SMALL)]
    assert flat["per_corruption"] == [dataclasses.asdict(DARK)]
    assert report().flat()["per_corruption"] == []


def test_the_table_shows_an_undefined_metric_as_a_dash_and_is_ascii() -> None:
    table = report_table(report())
    row = next(line for line in table.splitlines() if line.startswith("pixel_ap"))
    assert row.split() == ["pixel_ap", "71.00", "-", "71.00", "71.00"]
    assert table.isascii()


def test_a_folder_name_cannot_send_escape_sequences_to_the_terminal() -> None:
    hostile = scoring(per_defect=(DefectRow("\x1b[2Jboom\n", 1, 1, MODEL),))
    assert "\x1b" not in report_table(report(scorings=(hostile,), category="\x1b]0;x\x07"))


def test_percent_shows_nothing_but_a_dash_where_there_is_no_number() -> None:
    assert (percent(None), percent(math.nan), percent(0.98634), percent(1.0)) == ("–", "–", "98.63", "100.00")


def test_a_report_without_a_scoring_cannot_be_held() -> None:
    with pytest.raises(ValueError, match="at least one scoring"):
        report(scorings=())
