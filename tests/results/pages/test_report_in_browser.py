"""The script of the report page, run in a browser: the threshold, filters, CSV, the viewer, and a phone's width."""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest

from metalad.results.pages.report_page import write_html_report
from metalad.results.report import CorruptionRow, DefectRow, EvaluatedImage, Report
from metalad.visualization.picture_folder import PictureFolder
from metalad.visualization.pictures import EmbeddedPicture, embed, embed_crop
from tests.browser import needs_browser
from tests.results.pages.browser import run_in_browser
from tests.results.pages.test_report_page import report

pytestmark = needs_browser

GOOD = [1.0, 1.5, 2.0, 2.49]
DEFECTIVE = [2.4999, 2.6, 3.0, 9.0]
SCORES = [*((score, False) for score in GOOD), *((score, True) for score in DEFECTIVE)]


def images(threshold: float) -> tuple[EvaluatedImage, ...]:
    kinds = ["good"] * 4 + ["scratch", "scratch", "dent", "dent"]
    return tuple(
        EvaluatedImage(f"test/{kind}/{number:03}, x.png", kind, label, score, score, score > threshold)
        for number, (kind, (score, label)) in enumerate(zip(kinds, SCORES, strict=True))
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    lost = tuple(CorruptionRow(f"corruption {number}", 4, 0.9, 0.1, 0.5, 0.0) for number in range(9))
    metrics = report().chosen.metrics_model
    scorings = tuple(
        dataclasses.replace(
            each,
            threshold=2.5,
            per_defect=(DefectRow("dent", 2, 2, metrics, metrics), DefectRow("scratch", 2, 1, metrics, metrics)),
            per_corruption=lost,
            rate_thresholds=((0.001, 8.0), (0.01, 4.0), (0.1, 2.0), (0.5, 1.0)),
        )
        for each in report().scorings
    )
    folder = PictureFolder(path)

    def pictures(index: int) -> dict[str, EmbeddedPicture | None]:
        image = np.random.default_rng(index).integers(0, 255, (600, 800, 3), np.uint8)
        full = folder.write_full_size(index, {"Input": image, "Anomaly map": image[::-1]}, True)
        return {
            "Input": embed(image, full["Input"]),
            "Peak": embed_crop(image, 100, 700),
            "Reconstruction": None,
            "Anomaly map": embed(image[::-1], full["Anomaly map"]),
            "Ground truth": embed(np.zeros((600, 800), np.uint8)),
        }

    shown: Report = dataclasses.replace(report(), scorings=scorings, images=images(2.5), skipped=())
    write_html_report(path, shown, pictures, folder)
    return path


STATE = """
const state = () => ({
  passed: byId("count-passed").textContent, rejected: byId("count-rejected").textContent,
  alarms: byId("count-alarms").textContent, missed: byId("count-missed").textContent,
  rate: byId("rate").textContent, options: [...byId("options").children].map((code) => code.textContent),
  wrong: [...document.querySelectorAll("tr.wrong")].map((row) => Number(row.dataset.score)),
  chips: visible().map((row) => [row, row.querySelector(".chip")])
    .map(([row, chip]) => `${row.dataset.score} ${chip.textContent} ${chip.className}`),
  times: Object.fromEntries(visible().map((row) => [row.dataset.score, row.querySelector(".times").textContent])),
  label: byId("threshold-label").textContent, reset: !byId("reset").hidden,
});
const slider = byId("threshold");
"""


def test_moving_the_threshold_updates_counts_rate_options_and_decisions(path: Path) -> None:
    before, moved, low, high, after = run_in_browser(
        path,
        STATE
        + """
        const before = state();
        set(slider, 1000 * (2.2 - axis.low) / (axis.high - axis.low)); set(slider, slider.value, "change");
        const moved = state();
        set(slider, 0); const low = state();
        set(slider, 1000); const high = state();
        byId("reset").click();
        return [before, moved, low, high, state()];
        """.replace("const before", 'const axis = JSON.parse(byId("score-data").textContent); const before'),
    )
    assert before["passed"] == "5"
    assert before["rejected"] == "3"
    assert (before["alarms"], before["missed"]) == ("0 of 4 0 %", "1 of 4 25 %")
    assert (before["rate"], before["options"]) == ("5 %", ["--threshold 2.5", "--false-alarms 0.05"])
    assert before["times"]["2.4999"] == "0.99996 × threshold"
    assert (before["wrong"], before["reset"]) == ([2.4999], False)
    assert "2.4999 passed chip wrong" in before["chips"]

    threshold = float(moved["label"].removeprefix("threshold "))
    assert threshold == pytest.approx(2.2, abs=0.01)
    assert (moved["passed"], moved["rejected"]) == ("3", "5")
    assert (moved["alarms"], moved["missed"]) == ("1 of 4 25 %", "0 of 4 0 %")
    assert (moved["wrong"], moved["reset"]) == ([2.49], True)
    assert moved["options"][0] == f"--threshold {threshold:g}"
    rate = float(moved["options"][1].removeprefix("--false-alarms "))
    # Between 1 % at 4.0 and 10 % at 2.0, linear in the logarithms.
    assert rate == pytest.approx(0.1 ** (1 + np.log(threshold / 2) / np.log(2)), rel=0.06)
    assert moved["rate"] == f"about {100 * rate:g} %"
    assert "2.49 rejected chip wrong" in moved["chips"]

    assert (low["passed"], low["rejected"], low["rate"]) == ("0", "8", "more than 50 %")
    assert (high["passed"], high["rejected"], high["rate"]) == ("8", "0", "less than 0.1 %")
    assert len(low["options"]) == len(high["options"]) == 1
    assert after == before


def test_the_threshold_can_be_moved_by_keyboard_and_its_value_is_announced(path: Path) -> None:
    kind, is_focused, label, announced = run_in_browser(
        path,
        """
        const slider = byId("threshold");
        slider.focus();
        const values = ["aria-label", "aria-valuetext"].map((name) => slider.getAttribute(name));
        return [slider.type, document.activeElement === slider, ...values];
        """,
    )
    assert (kind, is_focused, label) == ("range", True, "Threshold")
    assert announced == "threshold 2.500: 1 missed, 0 false alarms"


def test_search_and_filters_select_rows_and_the_csv_has_what_is_shown(path: Path) -> None:
    rows = """
    const shown = () => visible().map((row) => Number(row.dataset.score)).sort();
    const result = {};
    set(byId("outcome-filter"), "missed defect"); result.missed = shown();
    set(byId("outcome-filter"), "false alarm"); result.alarms = shown(); result.none = !byId("none-matching").hidden;
    set(byId("outcome-filter"), "correct"); result.correct = shown();
    set(byId("outcome-filter"), ""); set(byId("defect-filter"), "dent"); result.dent = shown();
    set(byId("search"), "DENT/006"); result.search = shown(); result.matching = byId("matching").textContent;
    set(byId("search"), ""); set(byId("defect-filter"), "");  set(byId("outcome-filter"), "wrong");
    result.labels = [...byId("outcome-filter").options].map((option) => option.textContent);
    const saved = [];
    URL.createObjectURL = (blob) => { saved.push(blob); return "#"; };
    byId("csv").click();
    result.csv = await saved[0].text();
    return result;
    """
    result = run_in_browser(path, rows)
    assert result["missed"] == [2.4999]
    assert (result["alarms"], result["none"]) == ([], True)
    assert result["correct"] == [1, 1.5, 2, 2.49, 2.6, 3, 9]
    assert (result["dent"], result["search"], result["matching"]) == ([3, 9], [3], "1 of 8 images")
    assert result["labels"] == ["All (8)", "Wrong (1)", "False alarms (0)", "Misses (1)", "Correct (7)"]
    assert list(csv.reader(io.StringIO(result["csv"]))) == [
        ["path", "defect", "score", "threshold", "decision", "outcome"],
        ["test/scratch/004, x.png", "scratch", "2.4999", "2.5", "passed", "missed defect"],
    ]


def test_the_viewer_shows_full_size_by_click_and_keys(path: Path) -> None:
    result = run_in_browser(
        path,
        """
        const dialog = byId("viewer"), image = byId("viewer-image"), result = [];
        const note = async (name) => {
          do await wait(50); while (!image.complete);
          const source = image.src.startsWith("data:") ? "embedded" : image.src.split("/").slice(-2).join("/");
          const isLarge = Math.round(image.getBoundingClientRect().width) >= 800;
          const title = byId("viewer-title").textContent.slice(0, 12);
          result.push([name, dialog.open, source, title, image.naturalWidth, isLarge]);
        };
        visible()[0].querySelector(".anomaly-map .zoom").click(); await note("click");
        press(dialog, "ArrowUp"); await note("up");
        press(dialog, "1"); await note("1");
        press(byId("viewer-stage"), "Enter"); await note("enter");
        result.push(["scrolled to the peak", byId("viewer-stage").scrollLeft > 0, byId("viewer-stage").scrollTop]);
        press(dialog, "ArrowRight"); await note("right");
        image.click(); await note("picture clicked");
        press(dialog, "ArrowLeft"); press(dialog, "ArrowLeft"); await note("left, twice");
        dialog.close(); result.push(dialog.open);
        return result;
        """,
        width=700,
    )
    steps = {entry[0]: entry[1:] for entry in result if isinstance(entry, list)}
    first, second = "test/scratch", "test/dent/00"
    assert steps["click"] == [True, "report_files/00004-anomaly-map.jpg", first, 800, False]
    assert steps["up"] == [True, "embedded", first, 256, False]
    assert steps["1"] == [True, "report_files/00004-input.jpg", first, 800, False]
    assert steps["enter"] == [True, "report_files/00004-input.jpg", first, 800, True]
    assert steps["scrolled to the peak"] == [True, 0]
    assert steps["right"] == [True, "report_files/00007-input.jpg", second, 800, True]
    assert steps["picture clicked"] == [True, "report_files/00007-input.jpg", second, 800, False]
    assert steps["left, twice"] == [True, "report_files/00004-input.jpg", first, 800, False]
    assert result[-1] is False


def test_a_report_without_its_folder_shows_the_thumbnails(path: Path, tmp_path: Path) -> None:
    alone = tmp_path / "report.html"
    alone.write_bytes(path.read_bytes())
    script = """
    visible()[0].querySelector(".zoom").click();
    const image = byId("viewer-image");
    await wait(300);
    return [image.src.slice(0, 10), image.naturalWidth];
    """
    assert run_in_browser(alone, script) == ["data:image", 256]


@pytest.mark.parametrize("width", [420, 1400])
def test_navigation_lands_right_and_nothing_overflows(path: Path, width: int) -> None:
    landed, overflow, bar, sticky, cells = run_in_browser(
        path,
        """
        document.documentElement.style.scrollBehavior = "auto";
        const landed = {};
        const bar = document.querySelector("nav").getBoundingClientRect().height;
        for (const link of document.querySelectorAll("nav a")) {
          window.scrollTo(0, 0);
          link.click();
          await wait(100);
          const bottom = window.scrollY + window.innerHeight >= document.documentElement.scrollHeight - 1;
          const top = document.querySelector(link.hash).getBoundingClientRect().top;
          landed[link.hash] = [top, bottom];
        }
        const scroll = [...document.querySelectorAll(".scroll")].find((box) => box.querySelector("thead th.row"));
        const head = scroll.querySelector("tbody th");
        scroll.scrollLeft = 1000;
        await wait(50);
        const sticky = head.getBoundingClientRect().left - scroll.getBoundingClientRect().left;
        const overflow = document.documentElement.scrollWidth - window.innerWidth;
        return [landed, overflow, bar, sticky, visible()[0].querySelectorAll("td").length];
        """,
        width=width,
    )
    assert list(landed) == ["#scores", "#images", "#metrics", "#corruption", "#curves", "#settings"]
    for target, (top, at_the_end) in landed.items():
        assert at_the_end or bar - 4 <= top <= bar + 16, target
    assert overflow <= 15  # the scroll bar
    assert -1 <= sticky <= 2
    assert cells == 7


@pytest.mark.parametrize("width", [420, 1400])
def test_an_address_with_a_section_opens_there(path: Path, width: int) -> None:
    script = """
    await wait(300);
    return [byId("metrics").getBoundingClientRect().top, document.querySelector("nav").getBoundingClientRect().height];
    """
    top, bar = run_in_browser(path, script, width, "#metrics")
    assert bar - 4 <= top <= bar + 16
