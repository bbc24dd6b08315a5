"""The HTML page of a report: structure, order, embedded pictures, and safety."""

import base64
import dataclasses
import io
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalad.results.caution import Caution, Severity
from metalad.results.pages.page import digits, times_threshold
from metalad.results.pages.report_page import default_order, nothing_lost, write_html_report
from metalad.results.report import (
    Confusion,
    CorruptionRow,
    DefectRow,
    EvaluatedImage,
    Metrics,
    Report,
    ScoringReport,
    SizeRow,
)
from metalad.results.separation import separation
from metalad.runtime.errors import RunError
from metalad.visualization.picture_folder import PictureFolder
from metalad.visualization.pictures import EmbeddedPicture, embed
from metalad.visualization.plots import Curve

Pictures = dict[str, EmbeddedPicture | None]

VOID = {"meta", "link", "img", "input", "br", "hr"}
MARKUP_NAME = "test/good/<script>alert(1)</script>\"' onload=x.png"


class Page(HTMLParser):
    """Parses a page, checks that elements are properly nested and closed, and stores the elements and their texts."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", " ".join(data.split())))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    def rows(self) -> list[str]:
        return [str(attrs["data-path"]) for attrs in self.all("tr") if "data-path" in attrs]


IMAGES = (
    EvaluatedImage("test/good/000.png", "good", False, 1.0, 0.1, False),
    EvaluatedImage("test/scratch/000.png", "scratch", True, 9.0, 0.9, True),
    EvaluatedImage("test/scratch/001.png", "scratch", True, 2.0, 0.2, False),
    EvaluatedImage(MARKUP_NAME, "good", False, 4.0, 0.4, True),
    EvaluatedImage("test/scratch/002.png", "scratch", True, 12.0, 1.2, True),
)


def report() -> Report:
    metrics = Metrics(0.9863, None, 0.91, 0.71, 0.7, 0.95, 0.97, 0.93)
    curves = (Curve("pixel_roc", (0.0, 1.0), (0.0, 1.0), 0.5), Curve("mine", (0.0, 1.0), (1.0, 1.0)))
    calibrated = ScoringReport(
        "calibrated",
        2.5,
        metrics,
        metrics,
        Confusion(2, 1, 1, 1),
        (DefectRow("scratch", 3, 2, metrics),),
        curves,
        false_alarm_rate=0.05,
    )
    raw = dataclasses.replace(calibrated, name="raw", threshold=0.25)
    skipped = (("test/good/<b>.png", "truncated <JPEG>"),)
    settings = {"seed": 7, "note": "</script><script>"}
    return Report("cookie", "gradient", "run-1", (64, 48), 4.0, (calibrated, raw), IMAGES, skipped, settings)


def embedded(*pictures: np.ndarray | None) -> Pictures:
    labels = ("Input", "Anomaly map", "Reconstruction", "Ground truth")
    return {label: embed(picture) for label, picture in zip(labels, pictures, strict=False)}


def pictures(index: int) -> Pictures:
    image = np.full((80, 60, 3), 40 * index, np.uint8)
    truth = np.zeros((300, 200), np.uint8) if IMAGES[index].label else None
    return embedded(image, image[:40], image[:, ::-1], truth)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html_report(path, report(), pictures)
    return path


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path)


def test_the_page_shows_the_result_then_scores_then_images_then_curves(path: Path, page: Page) -> None:
    assert ("h1", "2 of 3 defective found, 1 of 2 good rejected") in page.texts
    html = path.read_text(encoding="utf-8")
    positions = [
        html.index(text) for text in ("<h1", "set to reject 5 % of good", 'id="scores"', 'id="images"', 'id="curves"')
    ]
    assert positions == sorted(positions)


def test_the_page_loads_no_external_resources(path: Path, page: Page) -> None:
    for _, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))
    html = path.read_text(encoding="utf-8")
    assert "@import" not in html
    assert "@font-face" not in html
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_links_have_targets(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {str(attrs["href"])[1:] for attrs in page.all("a")}
    assert targets <= {str(identity) for identity in ids}


def test_markup_in_a_file_name_is_escaped(page: Page) -> None:
    assert [attrs.get("type") for attrs in page.all("script")] == ["application/json", None]
    assert not any("onload" in attrs for _, attrs in page.elements)
    assert MARKUP_NAME in page.rows()
    assert ("span", "truncated <JPEG>") in page.texts


def test_embedded_pictures_decode_to_the_given_pictures(page: Page) -> None:
    images = {str(attrs["alt"]): attrs for attrs in page.all("img")}
    assert len(page.all("img")) == 3 * len(IMAGES) + 3 + 1  # three ground truths, and the picture of the viewer
    attrs = images["Input of 002.png"]
    picture = Image.open(io.BytesIO(base64.b64decode(str(attrs["src"]).split(",", 1)[1])))
    assert (str(picture.width), str(picture.height)) == (attrs["width"], attrs["height"]) == ("60", "80")
    np.testing.assert_allclose(np.asarray(picture.convert("RGB")), 160, atol=2)
    truth = images["Ground truth of 002.png"]
    assert (truth["width"], truth["height"]) == ("171", "256")


def test_rows_are_ordered_by_wrong_verdicts_first_then_decreasing_score(page: Page) -> None:
    wrong = [MARKUP_NAME, "test/scratch/001.png"]
    right = ["test/scratch/002.png", "test/scratch/000.png", "test/good/000.png"]
    assert page.rows() == wrong + right
    assert [IMAGES[index].path for index in default_order(IMAGES)] == wrong + right


def test_rows_contain_the_attributes_for_sorting_and_filtering(page: Page) -> None:
    rows = [attrs for attrs in page.all("tr") if "data-path" in attrs]
    assert [float(str(attrs["data-score"])) for attrs in rows] == [4, 2, 12, 9, 1]
    assert [attrs.get("class") for attrs in rows] == ["wrong", "wrong", None, None, None]
    keys = {attrs["data-key"] for attrs in page.all("button") if "data-key" in attrs}
    assert all(f"data-{key}" in attrs for key in keys for attrs in rows)


def test_a_decision_is_colored_by_whether_it_was_right_and_also_shown_as_text(page: Page) -> None:
    chips = [attrs["class"] for attrs in page.all("span") if str(attrs.get("class")).startswith("chip")]
    assert chips == ["chip wrong", "chip wrong", "chip right", "chip right", "chip right"]
    decisions = [text for tag, text in page.texts if tag == "span" and text in ("rejected", "passed")]
    assert decisions == ["rejected", "passed", "rejected", "rejected", "passed"]
    outcomes = [
        text for tag, text in page.texts if tag == "small" and text in ("correct", "missed defect", "false alarm")
    ]
    assert outcomes == ["false alarm", "missed defect", "correct", "correct", "correct"]


def test_an_undefined_metric_is_shown_as_a_dash(page: Page) -> None:
    cells = [text for tag, text in page.texts if tag == "td"]
    start = next(index for index, (tag, text) in enumerate(page.texts) if (tag, text) == ("th", "Pixel AUROC"))
    assert [text for _, text in page.texts[start + 1 : start + 5]] == ["–"] * 4
    assert "98.63" in cells
    assert not any(text.lower() in ("nan", "none") for text in cells)


def test_curves_of_both_scorings_share_a_plot_and_settings_are_shown(page: Page) -> None:
    captions = [text for tag, text in page.texts if tag == "figcaption"]
    assert captions == ["Anomaly map", "Pixel ROC", "mine"]
    assert sum(attrs.get("class") == "plot" for attrs in page.all("svg")) == 2
    assert any(tag == "pre" and '"seed": 7' in text for tag, text in page.texts)


def test_defect_sizes_and_corruptions_are_shown_only_if_they_were_evaluated(page: Page, tmp_path: Path) -> None:
    assert not [text for _, text in page.texts if "orruption" in text or "defect size" in text.lower()]
    sizes = (SizeRow(0.0, 0.001, 3, 1, Metrics(0.71)), SizeRow(0.08, 1.0, 7, 7, Metrics(0.98)))
    corruptions = (
        CorruptionRow("brightness -10 %", 20, 0.9, 0.05, 0.45, 0.05),
        CorruptionRow("blur of 0.5 px", 20, 0.96, -0.01, 0.0, 0.05),
    )
    scorings = tuple(
        dataclasses.replace(each, per_size=sizes, per_corruption=corruptions) for each in report().scorings
    )
    write_html_report(tmp_path / "report.html", dataclasses.replace(report(), scorings=scorings), pictures)
    complete = Page(tmp_path / "report.html")
    cells = [text for tag, text in complete.texts if tag in ("th", "td")]
    for row in (
        ["below 0.1 %", "1 of 3", "2", "71.00"],
        ["8 % and more", "7 of 7", "0", "98.00"],
        ["brightness -10 %", "90.00", "5.00", "45.00", "5.00"],
        ["blur of 0.5 px", "96.00", "-1.00", "0.00", "5.00"],
    ):
        starts = [index for index, text in enumerate(cells) if text == row[0]]
        assert [cells[start : start + len(row)] for start in starts] == [row, row]  # one table per scoring
    captions = [text for tag, text in complete.texts if tag == "figcaption"]
    assert captions[1:3] == ["Image AUROC lost", "False alarms"]
    assert "corruption" in {attrs.get("id") for attrs in complete.all("section")}


def test_corruptions_are_one_line_if_nothing_is_lost(tmp_path: Path) -> None:
    def summary(*rows: CorruptionRow) -> tuple[str, list[str]]:
        scorings = tuple(dataclasses.replace(each, per_corruption=rows) for each in report().scorings)
        changed = dataclasses.replace(report(), scorings=scorings)
        write_html_report(tmp_path / "report.html", changed, pictures)
        return nothing_lost(changed), [text for tag, text in Page(tmp_path / "report.html").texts if tag == "summary"]

    harmless = CorruptionRow("blur", 20, 0.9500, 0.00001, 0.05, 0.05)
    undefined = CorruptionRow("shift", 20, None, None, 0.0, 0.05)
    line, summaries = summary(harmless, undefined)
    assert line == "Nothing is lost under 2 corruptions: no lower image AUROC, no further false alarms"
    assert summaries[0] == line
    for lost in (
        dataclasses.replace(harmless, image_auroc_loss=0.0002),
        dataclasses.replace(harmless, false_alarm_rate=0.1),
    ):
        line, summaries = summary(harmless, lost)
        assert line == ""
        assert summaries == ["All settings needed to reproduce this run"]


def test_without_masks_there_are_no_columns_of_pixels(page: Page, tmp_path: Path) -> None:
    assert "Ground truth" in [text for tag, text in page.texts if tag == "th"]
    image_only = Metrics(image_auroc=0.95, image_ap=0.97, image_f1max=0.93)
    scorings = tuple(
        dataclasses.replace(
            each,
            metrics_model=image_only,
            metrics_original=image_only,
            per_defect=(DefectRow("scratch", 3, 2, image_only, image_only),),
        )
        for each in report().scorings
    )
    write_html_report(tmp_path / "report.html", dataclasses.replace(report(), scorings=scorings), pictures)
    unmasked = Page(tmp_path / "report.html")
    headings = [text for tag, text in unmasked.texts if tag in ("th", "dt")]
    assert not [text for text in headings if "ixel" in text or "AUPRO" in text or text == "Ground truth"]
    assert {"image AUROC", "image AP", "Image AUROC"} <= set(headings)
    assert len(unmasked.all("img")) == 3 * len(IMAGES) + 1  # none of ground truth; one of the viewer
    assert not any("undefined" in str(attrs.get("class")) for attrs in unmasked.all("td"))


def test_a_score_near_the_threshold_gets_the_digits_that_show_its_side() -> None:
    scores = (0.997, 0.99999, 1.0, 1.00001, 1.02, 0.5, float("inf"))
    expected = ["0.997", "0.99999", "1.00", "1.00001", "1.02", "0.50", ""]
    assert [times_threshold(2 * score, 2.0).removesuffix(" × threshold") for score in scores] == expected
    assert times_threshold(1.0, 0.0) == times_threshold(1.0, -1.0) == ""
    assert [digits(value, 41.36) for value in (41.36, 41.362, 41.359999, 40.0)] == [
        "41.36",
        "41.362",
        "41.359999",
        "40.00",
    ]
    assert digits(math.nextafter(1.0, 2.0), 1.0) == "1.0000000000000002"


def test_thumbnails_of_the_images_after_the_first_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalad.results.pages.report_page.EMBEDDED_ROWS", 2)
    path = tmp_path / "report.html"
    (tmp_path / "report_files").mkdir()
    (tmp_path / "report_files" / "00009-input.jpg").write_text("of the former page")
    write_html_report(path, report(), pictures, PictureFolder(path))
    sources = [str(attrs["src"]) for attrs in Page(path).all("img") if attrs.get("src")]
    assert [source.startswith("data:") for source in sources] == [True] * 7 + [False] * 11
    files = sources[7:]
    assert {file.name for file in tmp_path.iterdir()} == {"report.html", "report_files"}
    assert {f"report_files/{file.name}" for file in (tmp_path / "report_files").iterdir()} == set(files)
    assert "report_files/00004-input-small.png" in files
    assert all(attrs.get("loading") == "lazy" for attrs in Page(path).all("img") if attrs.get("src") in files)
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / files[0]).convert("RGB")), 160, atol=2)


@pytest.mark.parametrize(
    ("severity", "label"), [("caution", "Caution:"), ("warning", "Warning:"), ("severe", "Severe warning:")]
)
def test_a_caution_stands_between_the_headline_and_the_scores(severity: Severity, label: str, tmp_path: Path) -> None:
    caution = Caution(severity, "few <images>")
    write_html_report(tmp_path / "report.html", dataclasses.replace(report(), caution=caution), pictures)
    page = Page(tmp_path / "report.html")
    assert page.texts.index(("h1", "2 of 3 defective found, 1 of 2 good rejected")) < page.texts.index(("b", label))
    assert page.texts.index(("p", "few <images>.")) < page.texts.index(("h2", "Image scores and threshold"))
    assert [attrs["class"] for attrs in page.all("p") if attrs.get("role") == "note"] == [f"caution {severity}"]


def test_without_a_caution_there_is_no_box_and_a_separation_is_shown(page: Page, tmp_path: Path) -> None:
    assert not [attrs for attrs in page.all("p") if str(attrs.get("class")).startswith("caution")]
    found = separation(np.array([1.0, 2.0, 3.0]), np.array([False, False, True]))
    scorings = tuple(dataclasses.replace(each, separation=found) for each in report().scorings)
    write_html_report(tmp_path / "report.html", dataclasses.replace(report(), scorings=scorings), pictures)
    texts = [text for tag, text in Page(tmp_path / "report.html").texts if tag == "p"]
    assert any(text.startswith("Chosen on these test images: a threshold between 2 and 3 separates") for text in texts)


def test_pictures_are_requested_one_at_a_time_while_the_page_is_written(tmp_path: Path) -> None:
    sizes = []

    def record_size(index: int) -> Pictures:
        sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
        noise = np.random.default_rng(index).integers(0, 255, (256, 256, 3), dtype=np.uint8)
        return embedded(noise, noise)

    write_html_report(tmp_path / "report.html", report(), record_size)
    assert len(sizes) == len(IMAGES)
    assert sizes[-1] > 3 * 2 * 50_000  # earlier pictures are on disk before the last is requested


def test_a_failure_keeps_the_old_page_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def fail(index: int) -> Pictures:
        if index == 1:
            raise ZeroDivisionError
        return pictures(index)

    with pytest.raises(ZeroDivisionError):
        write_html_report(path, report(), fail)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_path_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match=r"report\.html"):
        write_html_report(tmp_path / "file" / "report.html", report(), pictures)


def test_a_page_is_written_for_a_non_utf8_name_and_for_no_images(tmp_path: Path) -> None:
    not_utf8 = dataclasses.replace(IMAGES[0], path="test/good/caf\udce9.png")
    for images in ((not_utf8,), ()):
        path = tmp_path / f"{len(images)}.html"
        scoring = ScoringReport("raw", float("inf"), Metrics(), Metrics(), Confusion(0, 0, 0, 0))
        write_html_report(path, Report("c", "m", "r", (8, 8), 0.0, (scoring,), images), pictures)
        assert len(Page(path).rows()) == len(images)


def test_a_page_of_83_images_is_smaller_than_15_megabytes(tmp_path: Path) -> None:
    # Noise is the worst case for JPEG: a real picture needs fewer bytes.
    noise = np.random.default_rng(0).normal(128, 12, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    images = IMAGES[:4]
    path = tmp_path / "report.html"
    large = dataclasses.replace(report(), images=images)
    write_html_report(path, large, lambda _: embedded(noise, noise, noise, noise))
    assert path.stat().st_size / len(images) * 83 < 15e6
