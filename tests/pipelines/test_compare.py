"""Compare: the numbers are those of each run's own report, and the page shows every run and the test images."""

import base64
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalad.cli.main import main
from metalad.data.images import read_image
from metalad.methods.variation_model import VariationModelConfig
from metalad.pipelines.compare import compare, run_names
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.train import train
from metalad.results.comparison import Comparison
from metalad.results.report import METRIC_NAMES
from metalad.runtime.errors import ConfigError, DataError, MetaladError, ModelFileError, RunError
from metalad.visualization.pictures import data_uri, thumbnail
from tests.results.pages.test_report_page import Page
from tests.tiny import TINY, tiny_category

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_category(tmp_path_factory.mktemp("data") / "cookie", good=4, defective=5)


@pytest.fixture(scope="module")
def runs(category: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs, the last one not evaluated; the thresholds are low enough for some anomalous images."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(NAMES[:2]):
        train(category, folder / name, method=TINY, seed=seed, epochs=1, false_alarms=0.3)
    plain = VariationModelConfig(image_size=(48, 48), smoothing_sigma=1.0)
    train(category, folder / NAMES[2], method=plain, false_alarms=0.3)
    for name in NAMES[:2]:
        evaluate(folder / name, category, out=folder / name / "evaluation")
    return [folder / name for name in NAMES]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "comparison.html"


@pytest.fixture(scope="module")
def comparison(runs: list[Path], category: Path, page: Path) -> Comparison:
    return compare(runs, data=category, out=page, images=6)


def stored(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "evaluation" / "report.json").read_text(encoding="utf-8"))
    return found


def test_every_number_is_that_of_the_runs_own_report(comparison: Comparison, runs: list[Path]) -> None:
    found = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    places = {"model": ("metrics_model", "metrics"), "original": ("metrics_original", "metrics_original")}
    for run in runs:
        report = json.loads((run / "evaluation" / "report.json").read_text(encoding="utf-8"))
        assert found["runs"][run.name]["threshold"] == report["scorings"][0]["threshold"]
        assert found["runs"][run.name]["confusion"] == report["scorings"][0]["confusion"]
        for scoring in report["scorings"]:
            for resolution, (whole, part) in places.items():
                for metric in METRIC_NAMES:
                    mine = found["metrics"][scoring["name"]][resolution][metric][run.name]
                    assert mine == scoring[whole][metric]
                    for row in scoring["per_defect"]:
                        each = found["per_defect"][scoring["name"]][resolution][row["defect"]][metric]
                        assert each[run.name] == row[part][metric]
        scores = {image["path"]: image["score"] for image in report["images"]}
        assert all(entry["score"][run.name] == scores[entry["path"]] for entry in found["shown"])


def test_the_page_has_columns_and_numbers_of_every_run(comparison: Comparison, page: Path, runs: list[Path]) -> None:
    read = Page(page)
    rows = [attrs for attrs in read.all("tr") if "data-path" in attrs]
    images = comparison.reports[0].images
    assert [attrs["data-path"] for attrs in rows] == [images[choice.index].path for choice in comparison.choices]
    assert [attrs["data-reason"] for attrs in rows] == [choice.reason for choice in comparison.choices]
    labels = [str(attrs["data-label"]) for attrs in read.all("td") if "data-label" in attrs]
    assert len(labels) == 6 * (2 + len(runs))
    assert [label.partition(":")[0] for label in labels[:5]] == ["Input", "Ground truth", *NAMES]
    text = page.read_text(encoding="utf-8")
    for block in comparison.blocks():
        start = text.index(f'data-scoring="{block.scoring}" data-resolution="{block.resolution}"')
        for place, row in enumerate(re.findall(r'<th scope="row">.*?</tr>', text[start:], re.DOTALL)[: len(runs)]):
            expected = [f"{100 * (line.values[place] or 0):.2f}" for line in block.lines]
            assert re.findall(r">(\d+\.\d\d)<", row) == expected
            assert row.count("number best") == sum(place in line.best for line in block.lines)


@pytest.mark.usefixtures("comparison")
def test_each_plot_has_the_curves_of_all_runs(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    plots = re.findall(r"<figure><figcaption>(.*?)</figcaption>(.*?)</figure>", text, re.DOTALL)
    assert len(plots) == 8
    for title, svg in plots:
        assert title.endswith((", calibrated", ", raw"))
        assert all(f"{name}  " in svg for name in NAMES)


def test_the_pictures_are_those_of_the_test_images(comparison: Comparison, page: Path, category: Path) -> None:
    read = Page(page)
    pictures = {str(attrs["alt"]): str(attrs["src"]) for attrs in read.all("img")}
    path = comparison.reports[0].images[comparison.choices[0].index].path
    image = thumbnail(read_image(category / path))
    assert pictures[f"Input of {path}"] == data_uri(image)
    shown = [np.asarray(decoded(pictures[f"{run} on {path}"])) for run in NAMES]
    assert {each.shape for each in shown} == {np.asarray(image).shape}
    assert any(not np.array_equal(shown[0], other) for other in shown[1:])


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB")


def test_the_page_has_no_external_references(comparison: Comparison, page: Path) -> None:
    assert comparison.choices
    read = Page(page)
    for _, attrs in read.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))
    ids = [attrs["id"] for _, attrs in read.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_without_data_the_pictures_are_read_from_the_evaluated_folder(
    runs: list[Path], comparison: Comparison, tmp_path: Path, category: Path
) -> None:
    again = compare(runs, out=tmp_path / "a.html", images=6)
    assert again == comparison
    assert (tmp_path / "a.html").read_text(encoding="utf-8").count('src="data:image/') == 6 * (2 + len(runs))
    hidden = category.rename(category.with_name("moved"))
    try:
        assert compare(runs, out=tmp_path / "b.html", images=6) == comparison
    finally:
        hidden.rename(category)
    text = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert 'src="data:image/' not in text
    assert "give their folder as --data" in text


def test_the_command_prints_the_comparison(
    runs: list[Path], comparison: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["compare", *map(str, runs), "--out", str(tmp_path / "c.html"), "--images", "6", "--quiet"]
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(comparison.to_json())) | {
        "page": str(tmp_path / "c.html")
    }
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "cookie: 9 test images, 3 runs" in shown
    assert shown.endswith(f"page: {tmp_path / 'c.html'}\n")


def test_names_that_are_not_utf_8_are_those_of_stored_reports(category: Path, runs: list[Path], tmp_path: Path) -> None:
    """The first run is evaluated by `compare`, which then has its paths as they are; those of a file are escaped."""
    data = Path(shutil.copytree(category, tmp_path / "data"))
    image = next((data / "test" / "good").iterdir())
    try:
        image.rename(image.with_name(os.fsdecode(b"caf\xe9.jpg")))
    except OSError:
        pytest.skip("the file system takes names in UTF-8 only")
    copies = [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs[:2]]
    for run in copies:
        shutil.rmtree(run / "evaluation")
    first, again = (compare(copies, data=data, out=tmp_path / "page.html", images=6) for _ in range(2))
    assert first.to_json() == again.to_json()
    assert any("caf\\udce9" in each.path for each in first.reports[0].images)


# Errors


def copied(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to))


def test_runs_that_were_not_evaluated_need_data(runs: list[Path], tmp_path: Path) -> None:
    bare = copied(runs[0], tmp_path / "bare")
    shutil.rmtree(bare / "evaluation")
    with pytest.raises(RunError, match="bare was not evaluated yet; give --data"):
        compare([runs[1], bare], out=tmp_path / "page.html")


def test_a_page_that_cannot_be_written_is_refused_before_runs_are_evaluated(
    category: Path, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metalad.pipelines.compare.evaluate", None)
    copies = [copied(run, tmp_path / run.name) for run in runs]
    for copy in copies:
        shutil.rmtree(copy / "evaluation")
    with pytest.raises(RunError, match="it is a folder; choose the name of a file"):
        compare(copies, data=category, out=tmp_path)
    (copies[-1] / "evaluation").touch()
    with pytest.raises(RunError, match=r"cannot write .*report\.json: a file exists where a folder is needed"):
        compare(copies, data=category, out=tmp_path / "page.html")


def test_a_damaged_report_or_one_of_another_model_is_an_error(runs: list[Path], tmp_path: Path) -> None:
    other = copied(runs[0], tmp_path / "other")
    shutil.copy(runs[1] / "model.safetensors", other / "model.safetensors")
    with pytest.raises(RunError, match="other was trained again since it was evaluated"):
        compare([runs[1], other], out=tmp_path / "page.html")
    for content in ("{", "[]", '{"category": "cookie"}', json.dumps(stored(runs[0]) | {"images": [1]})):
        (other / "evaluation" / "report.json").write_text(content, encoding="utf-8")
        with pytest.raises(RunError, match=r"cannot use .*report\.json .*; evaluate .*other again"):
            compare([runs[1], other], out=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_images_changed_since_the_evaluation_are_an_error(runs: list[Path], category: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(category, tmp_path / "cookie"))
    for image in (changed / "test").rglob("*.jpg"):
        Image.fromarray(255 - read_image(image)).save(image)
    with pytest.raises(DataError, match=r"is not the image that .*one was evaluated on; evaluate it again"):
        compare(runs[:2], data=changed, out=tmp_path / "page.html")
    shutil.rmtree(changed / "test" / "good")
    with pytest.raises(DataError, match=r"has no test/good/.*, on which .*one was evaluated"):
        compare(runs[:2], data=changed, out=tmp_path / "page.html")


def test_runs_are_given_once_and_get_different_names(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is given twice"):
        run_names([runs[0], runs[0] / "model.safetensors"])
    namesake = copied(runs[0], tmp_path / "other" / "one")
    assert run_names([runs[0], namesake]) == [f"{runs[0].parent.name}/one", "other/one"]
    assert run_names(runs) == list(NAMES)


@pytest.mark.parametrize(
    ("names", "images", "kind"),
    [(NAMES[:1], 3, ConfigError), (NAMES, -1, ConfigError), ((*NAMES, "four"), 3, ModelFileError)],
)
def test_impossible_arguments_are_errors_of_one_line(
    names: tuple[str, ...], images: int, kind: type[MetaladError], runs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(kind) as failure:
        compare([runs[0].parent / name for name in names], out=tmp_path / "page.html", images=images)
    assert "\n" not in str(failure.value)
