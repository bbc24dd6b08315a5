"""The page of a bulk prediction: order, links, data files, replacement, and its script in a browser."""

import csv
import io
import json
import logging
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from metalad.results.caution import Caution
from metalad.results.pages.prediction_page import (
    FILES,
    PAGE,
    ROWS,
    PredictionInfo,
    remove_prediction_page,
    write_prediction_page,
)
from metalad.runtime.errors import RunError
from tests.browser import needs_browser
from tests.results.pages.browser import run_in_browser
from tests.results.pages.test_report_page import Page

INFO = PredictionInfo("bottle: padim", "calibrated", 2.0)
CAUTION = Caution("severe", "<i>few</i>")
MARKUP = "</script><script>alert(1)</script>\u2028.png"


def line(path: str, score: float, out: Path | None = None, **changed: Any) -> dict[str, Any]:
    return {
        "path": path,
        "score": score,
        "threshold": 2.0,
        "is_anomalous": score > 2,
        "height": 30,
        "width": 40,
        "regions": [{"box": [1, 2, 3, 4]}] * (score > 2),
        "map": None,
        "overlay": None if out is None else str(out / "overlays" / f"{Path(path).stem}.jpg"),
        **changed,
    }


def write_results(out: Path, lines: list[dict[str, Any]]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    file = out / "predictions.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    return file


def rows(out: Path) -> list[list[Any]]:
    """Return the rows of all data files, after a check of their form."""
    found = []
    for number, file in enumerate(sorted((out / FILES).iterdir())):
        text = file.read_text(encoding="ascii")
        start = f"metaladRows({number}, "
        assert file.name == f"{number:05}.js"
        assert text.startswith(start)
        assert text.endswith(");\n")
        found += json.loads(text[len(start) : -3])
    return found


def test_images_are_sorted_rejected_first_then_by_decreasing_score(tmp_path: Path) -> None:
    lines = [line(f"{score}.png", score) for score in (1.0, 5.0, 1.997, 3.0, 2.0004)]
    lines.insert(2, {"path": "broken.png", "error": "truncated"})
    lines.append(line("5.png", 5.0))  # a tie keeps its order
    write_prediction_page(write_results(tmp_path, lines), INFO)
    found = rows(tmp_path)
    assert [row[0] for row in found] == [
        "5.0.png",
        "5.png",
        "3.0.png",
        "2.0004.png",
        "1.997.png",
        "1.0.png",
        "broken.png",
    ]
    assert found[3][1:6] == [2.0004, "2.0004", "1.0002 × threshold", 1, 1]
    assert found[4][1:6] == [1.997, "1.997", "0.999 × threshold", 0, 0]
    assert found[-1] == ["broken.png", "truncated"]
    page = Page(tmp_path / PAGE)
    assert ("h1", "4 of 6 images rejected") in page.texts
    assert [text for tag, text in page.texts if tag == "option"] == [
        "All (7)",
        "Rejected (4)",
        "Passed (2)",
        "Unreadable (1)",
    ]
    assert "Anomaly map" not in [text for tag, text in page.texts if tag == "th"]  # none was written


def test_links_lead_to_the_files_for_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out, images = Path("results"), Path("new images")
    names = ["a b#1?.png", "50%.png", "é.jpg", "caf\udce9.png", "x.tif", "y.tif[2]"]
    lines = [line(str(images / name), 9.0 - index, out) for index, name in enumerate(names)]
    write_prediction_page(write_results(out, lines), INFO)
    for name, row in zip(names, rows(out), strict=True):
        overlay, image = (os.fsencode(_unquoted(link)) for link in row[6:8])
        assert overlay == os.fsencode(f"overlays/{Path(name).stem}.jpg")
        assert image == (b"" if ".tif" in name else os.fsencode(f"../new images/{name}"))
        assert not {"#", "?", " "} & {*row[6], *row[7]}


def _unquoted(link: str) -> str:
    from urllib.parse import unquote_to_bytes

    return os.fsdecode(unquote_to_bytes(link))


def test_overlays_are_linked_also_if_the_folder_was_moved_or_named_in_another_way(tmp_path: Path) -> None:
    (tmp_path / "out" / "overlays" / "deep").mkdir(parents=True)
    overlay = "/elsewhere/overlays/out/overlays/deep/x.jpg"
    write_prediction_page(write_results(tmp_path / "out", [line("x.png", 3.0, overlay=overlay)]), INFO)
    assert rows(tmp_path / "out")[0][6] == "overlays/deep/x.jpg"


def test_a_large_picture_is_marked(tmp_path: Path) -> None:
    lines = [line("a.png", 4.0, height=6000, width=6000), line("b.png", 3.0, height=3000, width=4000)]
    write_prediction_page(write_results(tmp_path, lines), INFO)
    assert [row[8] for row in rows(tmp_path)] == [1, 0]


def test_markup_in_a_name_is_data_only(tmp_path: Path) -> None:
    write_prediction_page(write_results(tmp_path, [line(MARKUP, 3.0)]), PredictionInfo("<b>", "raw", 2.0, CAUTION))
    assert rows(tmp_path)[0][0] == MARKUP
    page = Page(tmp_path / PAGE)
    assert ("b", "<b>") in page.texts
    assert ("p", "<i>few</i>.") in page.texts
    assert [attrs.get("src") for attrs in page.all("script")] == [None, None]


def test_a_later_page_replaces_the_earlier_one_and_leaves_other_files(tmp_path: Path) -> None:
    write_prediction_page(write_results(tmp_path, [line(f"{i}.png", 1.0) for i in range(2 * ROWS + 1)]), INFO)
    assert len(list((tmp_path / FILES).iterdir())) == 3
    (tmp_path / FILES / "mine.txt").touch()
    write_prediction_page(write_results(tmp_path, [line("x.png", 1.0)]), INFO)
    assert {file.name for file in (tmp_path / FILES).iterdir()} == {"00000.js", "mine.txt"}
    remove_prediction_page(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"predictions.jsonl", FILES}
    (tmp_path / FILES / "mine.txt").unlink()
    write_prediction_page(tmp_path / "predictions.jsonl", INFO)
    remove_prediction_page(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"predictions.jsonl"}


def test_a_page_of_someone_else_is_kept_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / PAGE).write_text("mine")
    with caplog.at_level(logging.WARNING, "metalad"):
        write_prediction_page(write_results(tmp_path, [line("x.png", 1.0)]), INFO)
    remove_prediction_page(tmp_path)
    assert (tmp_path / PAGE).read_text() == "mine"
    assert caplog.messages == [f"{tmp_path / PAGE} is not a page of metalad and was kept; the results have no page"]


def test_a_failure_while_the_page_is_replaced_leaves_none_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = write_results(tmp_path, [line("x.png", 1.0)])
    write_prediction_page(results, INFO)
    before = (tmp_path / PAGE).read_bytes()
    results.write_text("no JSON")
    with pytest.raises(ValueError, match="Expecting value"):
        write_prediction_page(results, INFO)
    assert (tmp_path / PAGE).read_bytes() == before  # nothing was replaced yet
    write_results(tmp_path, [line("y.png", 1.0)])

    def fail(*_: object) -> None:
        raise RunError("full")

    monkeypatch.setattr("metalad.results.pages.prediction_page.write_html_page", fail)
    with pytest.raises(RunError):
        write_prediction_page(results, INFO)
    assert not (tmp_path / PAGE).exists()
    assert {file.name for file in tmp_path.iterdir()} == {"predictions.jsonl", FILES}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("many")
    lines = [line(f"/data/line-3/camera_{i % 4}/part_{i:06}.png", 2.1 * (i % 997) / 996, out) for i in range(100_000)]
    results = write_results(out, lines)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_prediction_page(results, INFO)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 60  # MiB; the results have 25
    return out


def test_a_page_of_100000_images_has_small_files(many: Path) -> None:
    sizes = [file.stat().st_size for file in (many / FILES).iterdir()]
    assert len(sizes) == 100
    assert max(sizes) < 300_000
    assert (many / PAGE).stat().st_size < 60_000
    scores = [row[1] for row in rows(many)]
    assert len(scores) == 100_000
    assert scores == sorted(scores, reverse=True)


@needs_browser
def test_100000_images_can_be_turned_filtered_searched_and_saved(many: Path) -> None:
    result = run_in_browser(
        many / PAGE,
        """
        const names = () => visible().map((row) => row.querySelector(".file").textContent);
        const result = {}, receive = window.metaladRows;
        let loaded = 1;
        await until(() => visible().length === 50);
        window.metaladRows = (...values) => { loaded += 1; receive(...values); };
        result.first = [names().length, names()[0], byId("pages").textContent, byId("matching").textContent, loaded];
        byId("next").click(); await until(() => byId("page").value === "2");
        result.second = [names()[0], loaded];
        set(byId("page"), 2000, "change"); await until(() => byId("next").disabled);
        result.last = [names().length, names()[49], byId("next").disabled, loaded];
        set(byId("filter"), "Passed", "change"); await until(() => byId("pages").textContent !== "2000");
        const chip = visible()[0].querySelector(".chip");
        result.passed = [names()[0], byId("matching").textContent, chip.textContent];
        set(byId("filter"), "All", "change");
        set(byId("search"), "CAMERA_3/part_09999"); await until(() => byId("matching").textContent.startsWith("3 of"));
        result.search = names(); result.all = loaded;
        const saved = [];
        URL.createObjectURL = (blob) => { saved.push(blob); return "#"; };
        byId("csv").click(); await until(() => saved.length);
        result.csv = await saved[0].text();
        return result;
        """,
    )
    rejected = [i for i in range(100_000) if 2.1 * (i % 997) / 996 > 2]
    assert result["first"] == [50, "part_000996.png", "2000", "100000 of 100000 images", 1]
    assert result["second"] == ["part_050846.png", 1]
    assert result["last"] == [50, "part_099700.png", True, 2]
    passed = 100_000 - len(rejected)
    assert result["passed"] == ["part_000948.png", f"{passed} of 100000 images", "passed"]
    assert sorted(result["search"]) == ["part_099991.png", "part_099995.png", "part_099999.png"]
    assert result["all"] == 100
    lines = list(csv.reader(io.StringIO(result["csv"])))
    assert lines[0] == ["path", "score", "times threshold", "decision", "regions", "error"]
    assert sorted(each[0] for each in lines[1:]) == [
        f"/data/line-3/camera_3/{name}" for name in sorted(result["search"])
    ]


@needs_browser
@pytest.mark.parametrize("width", [420, 1400])
def test_pictures_are_shown_and_opened(tmp_path: Path, width: int) -> None:
    out, images = tmp_path / "out", tmp_path / "é #1"
    lines = [line(str(images / f"{i} x.png"), 3.0 - i, out) for i in range(2)]
    lines += [
        line(str(images / "large.png"), 0.5, out, height=6000, width=6000),
        {"path": "broken.png", "error": "cut"},
    ]
    for folder, suffix, size in ((out / "overlays", "jpg", (400, 300)), (images, "png", (800, 600))):
        folder.mkdir(parents=True)
        for name in ("0 x", "1 x", "large"):
            Image.new("RGB", size, (9, 9, 200)).save(folder / f"{name}.{suffix}")
    write_prediction_page(write_results(out, lines), INFO)
    loaded, opened, chips, overflow = run_in_browser(
        out / PAGE,
        """
        await until(() => visible().length >= 4);
        const pictures = [...document.querySelectorAll("#image-table img")];
        for (const picture of pictures) picture.loading = "eager";
        await until(() => pictures.every((picture) => picture.naturalWidth));
        const opened = [], image = byId("viewer-image");
        const note = async () => {
          do await wait(50); while (!image.complete);
          opened.push([byId("viewer-title").textContent.split(" · ")[1], image.naturalWidth]);
        };
        visible()[0].querySelector(".zoom").click(); await note();
        press(byId("viewer"), "ArrowRight"); await note();
        press(byId("viewer"), "ArrowDown"); await note();
        press(byId("viewer"), "ArrowRight"); await note();
        byId("viewer").close();
        const overflow = document.documentElement.scrollWidth - window.innerWidth;
        const chips = visible().map((row) => row.querySelector(".chip").textContent);
        return [pictures.map((picture) => picture.naturalWidth), opened, chips, overflow];
        """,
        width=width,
    )
    assert loaded == [400, 800, 400, 800]  # the large ones are opened on request
    assert opened == [
        ["rejected, score 3.000", 400],
        ["passed, score 2.000", 400],
        ["passed, score 2.000", 800],
        ["passed, score 0.5000", 800],
    ]
    assert chips == ["rejected", "passed", "passed", "unreadable"]
    assert overflow <= 15


@needs_browser
def test_missing_data_files_are_named(tmp_path: Path) -> None:
    write_prediction_page(write_results(tmp_path, [line("x.png", 3.0)]), INFO)
    (tmp_path / FILES / "00000.js").unlink()
    script = "await until(() => byId('failed').checkVisibility()); return byId('failed').textContent"
    assert FILES in run_in_browser(tmp_path / PAGE, script)
