import base64
import dataclasses
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalad.results.report import (
    Confusion,
    CorruptionRow,
    Curve,
    DefectRow,
    Metrics,
    Report,
    Scoring,
    SizeRow,
    Verdict,
)
from metalad.runtime.errors import RunError
from metalad.visualization.html_report import default_order, write_html_report
from metalad.visualization.pictures import Pictures

VOID = {"meta", "link", "img", "input", "br", "hr"}
HOSTILE = "test/good/<script>alert(1)</script>\"' onload=x.png"


class Page(HTMLParser):
    """Checks that every element is closed in turn, and remembers elements and the text in them."""

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


VERDICTS = (
    Verdict("test/good/000.png", "good", False, 1.0, 0.1, False),
    Verdict("test/scratch/000.png", "scratch", True, 9.0, 0.9, True),
    Verdict("test/scratch/001.png", "scratch", True, 2.0, 0.2, False),
    Verdict(HOSTILE, "good", False, 4.0, 0.4, True),
    Verdict("test/scratch/002.png", "scratch", True, 12.0, 1.2, True),
)


def report() -> Report:
    metrics = Metrics(0.9863, None, 0.91, 0.71, 0.7, 0.95, 0.97, 0.93)
    curves = (Curve("pixel_roc", (0.0, 1.0), (0.0, 1.0), 0.5), Curve("mine", (0.0, 1.0), (1.0, 1.0)))
    calibrated = Scoring(
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
    return Report("cookie", "gradient", "run-1", (64, 48), 4.0, (calibrated, raw), VERDICTS, skipped, settings)


def pictures(index: int) -> Pictures:
    image = np.full((80, 60, 3), 40 * index, np.uint8)
    truth = np.zeros((300, 200), np.uint8) if VERDICTS[index].abnormal_truth else None
    return Pictures(image, image[:40], image[:, ::-1], truth)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html_report(path, report(), pictures)
    return path


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path)


def test_the_verdict_comes_first_then_the_images_then_the_curves(path: Path, page: Page) -> None:
    assert ("h1", "2 of 3 defective found, 1 of 2 good rejected") in page.texts
    html = path.read_text(encoding="utf-8")
    places = [html.index(text) for text in ("<h1", "set to reject 5 % of good", 'id="images"', 'id="curves"')]
    assert places == sorted(places)


def test_the_page_reaches_for_nothing_outside_itself(path: Path, page: Page) -> None:
    for _, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))
    html = path.read_text(encoding="utf-8")
    assert "@import" not in html
    assert "@font-face" not in html
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_id_is_unique_and_every_anchor_leads_somewhere(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {str(attrs["href"])[1:] for attrs in page.all("a")}
    assert targets <= {str(identity) for identity in ids}


def test_a_hostile_file_name_is_shown_and_never_run(page: Page) -> None:
    assert len(page.all("script")) == 1
    assert not any("onload" in attrs for _, attrs in page.elements)
    assert HOSTILE in page.rows()
    assert ("span", "truncated <JPEG>") in page.texts


def test_the_pictures_decode_to_what_was_given(page: Page) -> None:
    images = {str(attrs["alt"]): attrs for attrs in page.all("img")}
    assert len(page.all("img")) == 3 * len(VERDICTS) + 3  # three defective ones have a ground truth
    attrs = images["Input of 002.png"]
    picture = Image.open(io.BytesIO(base64.b64decode(str(attrs["src"]).split(",", 1)[1])))
    assert (str(picture.width), str(picture.height)) == (attrs["width"], attrs["height"]) == ("60", "80")
    np.testing.assert_allclose(np.asarray(picture.convert("RGB")), 160, atol=2)
    truth = images["Ground truth of 002.png"]
    assert (truth["width"], truth["height"]) == ("171", "256")


def test_wrong_verdicts_come_first_then_the_score_falls(page: Page) -> None:
    wrong = [HOSTILE, "test/scratch/001.png"]
    right = ["test/scratch/002.png", "test/scratch/000.png", "test/good/000.png"]
    assert page.rows() == wrong + right
    assert [VERDICTS[index].path for index in default_order(VERDICTS)] == wrong + right


def test_the_rows_carry_what_the_sorting_and_the_filter_read(page: Page) -> None:
    rows = [attrs for attrs in page.all("tr") if "data-path" in attrs]
    assert [float(str(attrs["data-score"])) for attrs in rows] == [4, 2, 12, 9, 1]
    assert [attrs.get("class") for attrs in rows] == ["wrong", "wrong", None, None, None]
    keys = {attrs["data-key"] for attrs in page.all("button") if "data-key" in attrs}
    assert all(f"data-{key}" in attrs for key in keys for attrs in rows)


def test_a_verdict_is_told_by_words_and_not_by_colour_alone(page: Page) -> None:
    shown = [text for tag, text in page.texts if tag == "span" and text in ("NG", "OK")]
    assert shown == ["NG", "OK", "NG", "NG", "OK"]
    outcomes = [
        text for tag, text in page.texts if tag == "small" and text in ("correct", "missed defect", "false alarm")
    ]
    assert outcomes == ["false alarm", "missed defect", "correct", "correct", "correct"]


def test_an_undefined_metric_is_a_dash(page: Page) -> None:
    cells = [text for tag, text in page.texts if tag == "td"]
    start = next(index for index, (tag, text) in enumerate(page.texts) if (tag, text) == ("th", "Pixel AUROC"))
    assert [text for _, text in page.texts[start + 1 : start + 5]] == ["–"] * 4
    assert "98.63" in cells
    assert not any(text.lower() in ("nan", "none") for text in cells)


def test_the_curves_of_both_scorings_share_a_plot_and_the_settings_are_there(page: Page) -> None:
    captions = [text for tag, text in page.texts if tag == "figcaption"]
    assert captions == ["Image scores, calibrated", "Pixel ROC", "mine"]
    assert sum(attrs.get("class") == "plot" for attrs in page.all("svg")) == 3
    assert any(tag == "pre" and '"seed": 7' in text for tag, text in page.texts)


def test_sizes_and_nuisances_have_tables_and_bars_only_where_there_are_any(page: Page, tmp_path: Path) -> None:
    assert not [text for _, text in page.texts if "uisance" in text or "Size of" in text]
    sizes = (SizeRow(0.0, 0.001, 3, 1, Metrics(0.71)), SizeRow(0.08, 1.0, 7, 7, Metrics(0.98)))
    corruptions = (
        CorruptionRow("brightness -10 %", 20, 0.9, 0.05, 0.45, 0.05),
        CorruptionRow("blur of 0.5 px", 20, 0.96, -0.01, 0.0, 0.05),
    )
    scorings = tuple(
        dataclasses.replace(each, per_size=sizes, per_corruption=corruptions) for each in report().scorings
    )
    write_html_report(tmp_path / "report.html", dataclasses.replace(report(), scorings=scorings), pictures)
    whole = Page(tmp_path / "report.html")
    cells = [text for tag, text in whole.texts if tag in ("th", "td")]
    for row in (
        ["below 0.1 %", "1 of 3", "2", "71.00"],
        ["8 % and more", "7 of 7", "0", "98.00"],
        ["brightness -10 %", "90.00", "5.00", "45.00", "5.00"],
        ["blur of 0.5 px", "96.00", "-1.00", "0.00", "5.00"],
    ):
        places = [place for place, text in enumerate(cells) if text == row[0]]
        assert [cells[place : place + len(row)] for place in places] == [row, row]  # a table each scoring
    captions = [text for tag, text in whole.texts if tag == "figcaption"]
    assert captions[:2] == ["Image AUROC lost", "False alarms"]
    assert "corruption" in {attrs.get("id") for attrs in whole.all("section")}


def test_pictures_are_asked_for_one_at_a_time_while_the_page_is_written(tmp_path: Path) -> None:
    sizes = []

    def spy(index: int) -> Pictures:
        sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
        noise = np.random.default_rng(index).integers(0, 255, (256, 256, 3), dtype=np.uint8)
        return Pictures(noise, noise)

    write_html_report(tmp_path / "report.html", report(), spy)
    assert len(sizes) == len(VERDICTS)
    assert sizes[-1] > 3 * 2 * 50_000  # earlier pictures are on the disk before the last is drawn


def test_a_failure_leaves_the_old_page_and_nothing_else(tmp_path: Path) -> None:
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


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match=r"report\.html"):
        write_html_report(tmp_path / "file" / "report.html", report(), pictures)


def test_a_name_that_is_not_utf8_and_a_report_without_images_still_make_a_page(tmp_path: Path) -> None:
    odd = dataclasses.replace(VERDICTS[0], path="test/good/caf\udce9.png")
    for verdicts in ((odd,), ()):
        path = tmp_path / f"{len(verdicts)}.html"
        bare = Scoring("raw", float("inf"), Metrics(), Metrics(), Confusion(0, 0, 0, 0))
        write_html_report(path, Report("c", "m", "r", (8, 8), 0.0, (bare,), verdicts), pictures)
        assert len(Page(path).rows()) == len(verdicts)


def test_eighty_three_images_stay_below_fifteen_megabytes(tmp_path: Path) -> None:
    # Noise is what JPEG is worst at: no real picture is heavier.
    noise = np.random.default_rng(0).normal(128, 12, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    verdicts = VERDICTS[:4]
    path = tmp_path / "report.html"
    whole = dataclasses.replace(report(), verdicts=verdicts)
    write_html_report(path, whole, lambda _: Pictures(noise, noise, noise, noise))
    assert path.stat().st_size / len(verdicts) * 83 < 15e6
