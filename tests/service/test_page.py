"""The page of the service in a headless browser, with a real service behind it."""

import base64
import contextlib
import csv
import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
import numpy as np
import pytest
from PIL import Image

import metalad
from metalad.results.regions import find_regions
from metalad.service.map_layer import STEPS
from metalad.visualization.maps import color_stops, heat_map
from tests.browser import launched_browser, needs_browser
from tests.service.pictures import picture
from tests.service.running import Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_browser

TOKEN = "a token of the tests"
SQUARES = {"good.png": [], "defect.png": [(20, 30, 14, 250)], "two.png": [(6, 6, 10, 190), (40, 60, 12, 40)]}
"""Test images, and the (top, left, side, value) of squares on them: anomalous ones."""


@pytest.fixture(scope="module")
def served(model: metalad.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(model, tmp_path_factory.mktemp("keep"), names=("tiny", "other")) as service:
        yield service


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for seed, (name, squares) in enumerate(SQUARES.items()):
        Image.fromarray(picture(100 + seed, squares)).save(folder / name)
    return [folder / name for name in SQUARES]


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with launched_browser("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as browser:
        yield browser


@pytest.fixture
def open_page(browser: "Browser", served: Served) -> "Iterator[Callable[..., Page]]":
    """Return a function that opens the page; errors on the page fail the test."""
    problems: list[str] = []
    contexts = []

    def opened(url: str = served.url, *, wait: bool = True) -> "Page":
        context = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light")
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if "Security" in message.text else None)
        page.goto(url)
        if wait:
            page.wait_for_selector("#threshold-card:not([hidden])")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def drop(page: "Page", files: list[Path]) -> None:
    """Drop files on the page as a person does, and wait for their results."""
    contents = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files]
    page.evaluate(
        """(contents) => {
          const dataTransfer = new DataTransfer();
          for (const [name, text] of contents) {
            const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
            dataTransfer.items.add(new File([bytes], name, { type: name.endsWith("png") ? "image/png" : "" }));
          }
          for (const type of ["dragenter", "dragover", "drop"]) {
            document.body.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
          }
        }""",
        contents,
    )


def choose(page: "Page", files: list[Path]) -> None:
    page.set_input_files("#files", files)
    wait_for_results(page, len(files))


def wait_for_results(page: "Page", count: int) -> None:
    page.locator("#history .chip, #history .item-error").nth(count - 1).wait_for()
    page.locator("#progress").wait_for(state="hidden")


def history(page: "Page") -> dict[str, str]:
    """Return the last line of each picture in the list by its name."""
    items = page.locator("#history .item")
    return {
        items.nth(index).locator(".item-name").inner_text(): items.nth(index).locator(".item-line").inner_text()
        for index in range(items.count())
    }


def in_digits(score: float) -> str:
    return f"{score:#.4g}".removesuffix(".")


def verdicts(model: metalad.Model, files: list[Path], threshold: float) -> dict[str, str]:
    """Return what the list must show, from `Model.predict`."""
    results = {file.name: model.predict(file, threshold=threshold) for file in files}
    return {
        name: f"{'NG' if result.is_anomalous else 'OK'}\n{in_digits(result.score)}" for name, result in results.items()
    }


def test_dropped_pictures_have_the_verdicts_and_the_map_of_predict(
    open_page: "Callable[..., Page]", served: Served, files: list[Path]
) -> None:
    page = open_page()
    drop(page, files)
    wait_for_results(page, 3)
    assert history(page) == verdicts(served.model, files, served.model.threshold)
    assert served.most <= 2
    page.locator("#history .item", has_text="two.png").click()
    result = served.model.predict(files[2])
    assert page.locator("#verdict-word").inner_text() == "NG"
    assert page.locator("#regions .region").count() == len(result.regions) == 2
    first, polygon = page.locator("#regions .region").first.inner_text().split("\n"), result.regions[0].polygon
    assert (first[2], first[4]) == (in_digits(result.regions[0].peak_score), f"{result.regions[0].area} px")
    paths = page.locator("#outlines path")
    assert paths.count() == 2
    assert paths.first.get_attribute("d") == f"M{'L'.join(f'{x:g} {y:g}' for x, y in polygon)}Z"

    page.locator("#heat-canvas").wait_for()
    shown = page.evaluate(
        """() => {
          const canvas = document.getElementById("heat-canvas");
          return [canvas.width, canvas.height, ...canvas.getContext("2d").getImageData(0, 0, 80, 60).data];
        }"""
    )
    assert shown[:2] == [80, 60]
    pixels = np.array(shown[2:]).reshape(60, 80, 4)
    octaves = np.log2(result.anomaly_map / served.model.threshold)
    strength = np.clip((octaves + np.log2(3)) / np.log2(9), 0, 1)
    assert pixels[..., 3] == pytest.approx(255 * 0.72 * strength**2 * (3 - 2 * strength), abs=4)
    opaque = pixels[..., 3] > 100
    assert opaque.any()
    assert pixels[opaque][:, :3] == pytest.approx(heat_map(octaves, -np.log2(3), np.log2(3))[opaque], abs=12)

    opacity = "getComputedStyle(document.getElementById('heat-canvas')).opacity"
    page.fill("#opacity", "40")
    assert page.evaluate(opacity) == "0.4"
    page.locator("h1").click()
    page.keyboard.press("m")
    assert page.evaluate(opacity) == "0"


def test_the_colors_of_the_page_are_those_of_the_overlays() -> None:
    script = Path(metalad.__file__).parent / "service" / "page" / "anomaly_map.js"
    (block,) = re.findall(r"COLORS = \[(.*?)\]", script.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r"#[0-9a-f]{6}", block) == color_stops(17)


def test_moving_the_threshold_changes_counts_verdicts_and_regions(
    open_page: "Callable[..., Page]", served: Served, files: list[Path]
) -> None:
    page, model = open_page(), served.model
    scores = model.out_of_fold_scores()
    choose(page, files)
    count, number = page.locator("#calibration-count"), page.locator("#threshold-number")
    rejected = int((scores > model.threshold).sum())
    assert count.inner_text().startswith(f"{rejected} of 30 good images would be rejected (")
    assert str(model.caution()).split(": ", 1)[1] in page.locator("#caution").inner_text()

    low = float(np.median(scores)) / 1.01
    number.fill(f"{low:.9g}")
    rejected = int((scores > float(f"{low:.9g}")).sum())
    assert 0 < rejected < 30
    assert f"{rejected} of 30 good images would be rejected" in count.inner_text()
    assert history(page) == verdicts(model, files, float(f"{low:.9g}"))

    # A whole number of steps of the map that the page has: its regions are then exactly those above the threshold.
    page.locator("#history .item", has_text="two.png").click()
    high = model.threshold * 2 ** (48 / STEPS)
    number.fill(repr(high))
    result = model.predict(files[2])
    expected = find_regions(result.anomaly_map, high)
    page.locator("#regions-note", has_text="moved").wait_for()
    rows = [row.split("\n") for row in page.locator("#regions .region").all_inner_texts()]
    assert [row[4] for row in rows] == [f"{region.area} px" for region in expected]
    peaks = [float(row[2].removeprefix("≈ ")) for row in rows]
    assert peaks == pytest.approx([region.peak_score for region in expected], rel=0.03)

    page.locator("#reset-threshold").click()
    assert history(page) == verdicts(model, files, model.threshold)
    slider = page.locator("#threshold-slider")
    slider.focus()
    before = float(number.input_value())
    page.keyboard.press("ArrowRight")
    assert float(number.input_value()) > before
    assert "good images would be rejected" in (slider.get_attribute("aria-valuetext") or "")


def test_feedback_is_stored_moved_and_taken_back(
    open_page: "Callable[..., Page]", served: Served, files: list[Path]
) -> None:
    page, name = open_page(), f"{hashlib.sha256(files[1].read_bytes()).hexdigest()}.png"
    assert served.keep is not None
    good, defect = (served.keep / "tiny" / label / name for label in ("good", "defect"))
    choose(page, files[1:2])
    note = page.locator("#feedback-note")
    page.locator("#mark-good").click()
    note.get_by_text("“good”").wait_for()
    assert good.read_bytes() == files[1].read_bytes()
    assert page.locator("#mark-good").get_attribute("aria-pressed") == "true"
    page.keyboard.press("d")
    note.get_by_text("“defect”").wait_for()
    assert (good.exists(), defect.exists()) == (False, True)
    with contextlib.closing(sqlite3.connect(served.keep / "index.sqlite")) as index:
        rows = index.execute("SELECT model, sha256 || '.png', label, score, threshold, is_anomalous FROM feedback")
        score = served.model.predict(files[1]).score
        assert rows.fetchall() == [("tiny", name, "defect", score, served.model.threshold, 1)]
    page.keyboard.press("d")
    note.get_by_text("deleted").wait_for()
    assert not defect.exists()


def test_the_csv_has_the_pictures_that_the_filter_shows(
    open_page: "Callable[..., Page]", served: Served, files: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:200])
    page = open_page()
    choose(page, [*files, broken])

    def saved() -> list[dict[str, str]]:
        with page.expect_download() as download:
            page.locator("#csv").click()
        text = Path(download.value.path()).read_text(encoding="utf-8-sig")
        return list(csv.DictReader(text.splitlines()))

    rows = saved()
    results = {file.name: served.model.predict(file) for file in files}
    assert [row["file"] for row in rows] == ["broken.png", "defect.png", "good.png", "two.png"]
    assert [row["verdict"] for row in rows] == ["", "NG", "OK", "NG"]
    assert [float(row["score"]) for row in rows[1:]] == [results[row["file"]].score for row in rows[1:]]
    assert {float(row["threshold"]) for row in rows[1:]} == {served.model.threshold}
    assert "cannot be scored" in rows[0]["error"]
    assert page.locator(".item-error").inner_text() == rows[0]["error"]
    page.select_option("#filter", "NG")
    assert [row["file"] for row in saved()] == ["defect.png", "two.png"]
    assert list(history(page)) == ["defect.png", "two.png"]


def test_keys_move_through_the_history_and_open_the_help(open_page: "Callable[..., Page]", files: list[Path]) -> None:
    page = open_page()
    choose(page, files)
    name = page.locator("#picture-name")
    names = [name.inner_text()]
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "Home", "End", "a", "ArrowLeft"):
        page.keyboard.press(key)
        names.append(name.inner_text())
    order = ["defect.png", "good.png", "two.png"]
    assert [order.index(each) for each in names] == [0, 1, 2, 2, 1, 0, 2, 2, 0]  # the last step skips the OK picture
    assert page.locator("#live").inner_text().startswith("defect.png: NG, score")
    assert page.locator("#help").is_hidden()
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    assert "this is a defect" in page.locator("#help").inner_text()


def test_a_token_is_requested_kept_and_sent(
    open_page: "Callable[..., Page]", served: Served, files: list[Path], tmp_path: Path
) -> None:
    with serving(served.model, tmp_path / "keep", token=TOKEN) as guarded:
        page = open_page(guarded.url, wait=False)
        page.locator("#token-cancel").click()
        page.locator("#problem", has_text="No token was given").wait_for()
        page.locator("#open-token").click()
        page.locator("#token").fill("wrong")
        page.keyboard.press("Enter")
        page.locator("#token-error").wait_for()
        page.locator("#token").fill(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#threshold-card:not([hidden])")
        choose(page, files[:1])
        assert next(iter(history(page).values())).startswith("OK")
        page.reload()
        page.wait_for_selector("#threshold-card:not([hidden])")
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]


def test_a_busy_service_is_asked_again_and_one_out_of_reach_is_reported(
    open_page: "Callable[..., Page]", files: list[Path]
) -> None:
    page = open_page()
    tries: list[float] = []

    def busy(route: Any) -> None:
        tries.append(time.monotonic())
        if len(tries) == 1:
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"title": "Too Many Requests"})
        else:
            route.continue_()

    page.route("**/v1/predict*", busy)
    choose(page, files[:1])
    assert len(tries) == 2
    assert tries[1] - tries[0] > 0.95
    assert next(iter(history(page).values())).startswith("OK")
    page.unroute("**/v1/predict*")
    page.route("**/v1/predict*", lambda route: route.abort())
    choose(page, files[1:2])
    wait_for_results(page, 2)
    assert "The service cannot be reached" in history(page)["defect.png"]
    page.unroute("**/v1/predict*")
    page.locator("#retry").click()
    page.locator("#history .chip").nth(1).wait_for()
    assert history(page)["defect.png"].startswith("NG")


def test_a_folder_is_taken_and_files_that_browsers_cannot_show_are_shown_by_the_service(
    open_page: "Callable[..., Page]", served: Served, tmp_path: Path
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    path = folder / "scan.tif"
    Image.fromarray(picture(101, SQUARES["defect.png"])).save(path)
    (folder / "notes.txt").write_text("no picture")
    page = open_page()
    page.set_input_files("#folder", folder)
    wait_for_results(page, 1)
    assert list(history(page)) == ["scans/scan.tif"]
    assert list(history(page).values()) == list(verdicts(served.model, [path], served.model.threshold).values())
    assert page.locator("#problem").inner_text() == "1 file left out: no picture."
    brightness = """() => {
      const canvas = document.getElementById("input-canvas");
      const { data } = canvas.getContext("2d").getImageData(37, 27, 1, 1);
      return [canvas.width, canvas.height, data[0]];
    }"""
    page.locator("#heat-canvas").wait_for()
    width, height, value = page.evaluate(brightness)
    assert (width, height, value > 240) == (80, 60, True)


def test_a_picture_of_the_camera_is_scored(open_page: "Callable[..., Page]") -> None:
    page = open_page()
    page.locator("#open-camera").click()
    page.locator("#take-picture:not([disabled])").wait_for()
    page.locator("#take-picture").click()
    wait_for_results(page, 1)
    page.keyboard.press("Escape")
    assert list(history(page)) == ["camera-001.png"]


def test_another_model_scores_the_pictures_of_the_visit(open_page: "Callable[..., Page]", files: list[Path]) -> None:
    page = open_page()
    choose(page, files)
    before = history(page)
    page.select_option("#model", "other")
    assert history(page) == {}
    page.locator("#rescore").click()
    wait_for_results(page, 3)
    assert history(page) == before
    page.select_option("#model", "tiny")
    assert history(page) == before


def test_a_score_of_an_earlier_version_of_the_model_keeps_its_threshold_and_its_verdict(
    open_page: "Callable[..., Page]", model: metalad.Model, tmp_path: Path
) -> None:
    assert model.path is not None
    fresh = metalad.fit(
        [picture(seed) for seed in range(30)], method="variation_model", image_size=(48, 64), false_alarms=0.5
    )
    for name, each in (("fresh", fresh), ("m", model)):
        each.save(tmp_path / f"{name}.safetensors")
    Image.fromarray(picture(102)).save(tmp_path / "a.png")
    Image.fromarray(picture(103)).save(tmp_path / "b.png")
    served_file = tmp_path / "m.safetensors"
    score = model.predict(tmp_path / "a.png").score
    assert fresh.threshold < score < model.threshold
    old = served_file.read_bytes()

    def replace_model(content: bytes) -> None:
        (tmp_path / "part").write_bytes(content)
        (tmp_path / "part").replace(served_file)
        deadline, wanted = time.monotonic() + 10, hashlib.sha256(content).hexdigest()
        while httpx.get(f"{service.url}v1/models").json()["models"][0]["hash"] != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with serving(metalad.load(served_file), tmp_path / "keep", reload=0.1) as service:
        page = open_page(service.url)
        choose(page, [tmp_path / "a.png"])
        number, lines = page.locator("#threshold-number"), page.locator("#history .item-line")
        number.fill("5")
        replace_model((tmp_path / "fresh.safetensors").read_bytes())
        page.locator("#mark-good").click()
        page.locator("#feedback-note", has_text="another version of the model; score the picture again").wait_for()
        assert list((tmp_path / "keep").rglob("*.png")) == []
        earlier = f"OK\n{in_digits(score)}\nearlier version of the model"
        assert lines.all_inner_texts() == [earlier]
        assert "earlier version" in page.locator("#verdict-text").inner_text()
        assert number.input_value() == in_digits(fresh.threshold)

        assert page.locator("#rescore").inner_text() == "Score 1 picture with this model"
        page.locator("#rescore").click()
        wait_for_results(page, 2)
        assert lines.all_inner_texts() == [earlier, f"NG\n{in_digits(score)}"]
        assert page.locator("#rescore").is_hidden()
        page.locator("#mark-good").click()
        page.locator("#feedback-note", has_text="Stored").wait_for()
        with contextlib.closing(sqlite3.connect(tmp_path / "keep/index.sqlite")) as index:
            assert index.execute("SELECT threshold FROM feedback").fetchall() == [(fresh.threshold,)]
        with page.expect_download() as download:
            page.locator("#csv").click()
        rows = list(csv.DictReader(Path(download.value.path()).read_text(encoding="utf-8-sig").splitlines()))
        values = [(float(row["score"]), float(row["threshold"]), row["verdict"]) for row in rows]
        assert values == [(score, model.threshold, "OK"), (score, fresh.threshold, "NG")]

        replace_model(old)  # the answer of the next prediction has another hash
        choose(page, [tmp_path / "b.png"])
        wait_for_results(page, 3)
        page.locator("#history .item-line", has_text="earlier version").wait_for()
        assert ["earlier version" in line for line in lines.all_inner_texts()] == [False, True, False]
        assert number.input_value() == in_digits(model.threshold)


def test_axe_finds_nothing_serious_and_nothing_overflows(open_page: "Callable[..., Page]", files: list[Path]) -> None:
    import axe_playwright_python

    script = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page = open_page()
    page.evaluate(script)

    def serious() -> list[str]:
        found = page.evaluate("async () => (await axe.run()).violations")
        return [
            f"{each['id']}: {json.dumps(node['html'])}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    assert serious() == []
    choose(page, files)
    page.locator("#mark-defect").click()
    page.locator("#feedback-note", has_text="Stored").wait_for()
    looks: list[tuple[int, Literal["light", "dark"]]] = [(1400, "light"), (1400, "dark"), (420, "light")]
    for width, scheme in looks:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert serious() == [], (width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.keyboard.press("?")
    assert serious() == []


@pytest.mark.parametrize(("peak", "areas"), [(120, [24]), (200, [20, 24])])
def test_specks_above_another_threshold_are_left_out_as_by_the_service(
    open_page: "Callable[..., Page]", peak: int, areas: list[int]
) -> None:
    """A map of 60,000 pixels of 2 × 2 pixels of the image, with regions of 6, 5 and 1 of them."""
    script = """async ([peak]) => {
      const { regionsAbove } = await import("/page/anomaly_map.js");
      const map = { width: 300, height: 200, values: new Uint8Array(60000) };
      for (const index of [6010, 6011, 6012, 6310, 6311, 6312]) map.values[index] = 150;
      for (let x = 50; x < 55; x += 1) map.values[30000 + x] = peak;
      map.values[45250] = 120;
      return regionsAbove(map, { width: 600, height: 400, threshold: 1, ratio: 1 }).map(({ area }) => area);
    }"""
    assert open_page().evaluate(script, [peak]) == areas
