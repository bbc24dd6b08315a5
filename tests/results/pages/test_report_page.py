"""The HTML page of a report: structure, order, embedded pictures, and safety."""

import base64
import dataclasses
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalad.results.pages.report_page import default_order, write_html_report
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
from metalad.runtime.errors import RunError
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


def test_the_page_shows_the_result_then_images_then_curves(path: Path, page: Page) -> None:
    assert ("h1", "2 of 3 defective found, 1 of 2 good rejected") in page.texts
    html = path.read_text(encoding="utf-8")
    positions = [html.index(text) for text in ("<h1", "set to reject 5 % of good", 'id="images"', 'id="curves"')]
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
    assert len(page.all("script")) == 1
    assert not any("onload" in attrs for _, attrs in page.elements)
    assert MARKUP_NAME in page.rows()
    assert ("span", "truncated <JPEG>") in page.texts


def test_embedded_pictures_decode_to_the_given_pictures(page: Page) -> None:
    images = {str(attrs["alt"]): attrs for attrs in page.all("img")}
    assert len(page.all("img")) == 3 * len(IMAGES) + 3  # the three defective images have a ground truth
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


def test_a_verdict_is_shown_as_text_and_not_only_as_a_color(page: Page) -> None:
    verdicts = [text for tag, text in page.texts if tag == "span" and text in ("NG", "OK")]
    assert verdicts == ["NG", "OK", "NG", "NG", "OK"]
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
    assert captions == ["Image scores, calibrated", "Pixel ROC", "mine"]
    assert sum(attrs.get("class") == "plot" for attrs in page.all("svg")) == 3
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
    assert captions[:2] == ["Image AUROC lost", "False alarms"]
    assert "corruption" in {attrs.get("id") for attrs in complete.all("section")}


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
