"""Reports and pages that exist: replaced by the same command again, refused otherwise."""

import json
from pathlib import Path

import pytest

import metalad
from metalad import Model, RunError
from metalad.cli.main import main
from metalad.data.images import find_images
from tests.tiny import tiny_category


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots, which take most of the time of a page."""
    monkeypatch.setattr("metalad.visualization.plots._svg", lambda *_: "<svg></svg>")


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_category(tmp_path_factory.mktemp("data") / "cookie", train=6, good=2, defective=2)


@pytest.fixture(scope="module")
def model(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return trained(category, tmp_path_factory.mktemp("runs") / "one")


def trained(category: Path, out: Path) -> Model:
    return metalad.train(category, out, method="variation_model", image_size=32, smoothing_sigma=1.0)


def test_the_report_of_the_same_run_and_data_is_replaced(model: Model, category: Path, tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        metalad.evaluate(model, category, out=tmp_path, false_alarms=rate)
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["scorings"][0]["threshold"] == model.threshold_for(rate)


def test_a_report_of_another_run_or_of_other_data_is_refused(model: Model, category: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    metalad.evaluate(model, category, out=out)
    before = (out / "report.json").read_bytes()
    other = tiny_category(tmp_path / "other", train=6, good=2, defective=2)
    second = trained(category, tmp_path / "two")
    for given, data in ((model, other), (second, category)):
        with pytest.raises(RunError, match=r"report\.json exists, and is not of .*; replace it with --overwrite"):
            metalad.evaluate(given, data, out=out)
        assert (out / "report.json").read_bytes() == before
    assert metalad.evaluate(second, category, out=out, overwrite=True).run == "two"
    assert json.loads((out / "report.json").read_text())["run"] == "two"


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_a_foreign_file_with_the_name_of_a_report_is_refused(
    model: Model, category: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=f"{name} exists"):
        metalad.evaluate(model, category, out=tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_comparison_replaces_a_comparison_only(
    model: Model, category: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model.path is not None
    first = model.path.parent
    trained(category, tmp_path / "two")
    command = ["compare", str(first), str(tmp_path / "two"), "--data", str(category), "--quiet", "--images", "1"]
    for _ in range(2):
        assert main([*command, "--out", str(tmp_path / "page.html")]) == 0
    report = first / "evaluation/report.html"
    before = report.read_bytes()
    capsys.readouterr()
    assert main([*command, "--out", str(report)]) == 2
    assert "report.html exists, and is not a page of compare; replace it with --overwrite" in capsys.readouterr().err
    assert report.read_bytes() == before
    (tmp_path / "mine.html").write_text("mine")
    assert main([*command, "--out", str(tmp_path / "mine.html"), "--overwrite"]) == 0


def test_pictures_of_runs_are_not_inputs(tmp_path: Path) -> None:
    """Wherever a run folder lies, its pictures of unusual training images are results."""
    for name in ("run/outliers/01.jpg", "mine/outliers/01.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "run/model.safetensors").touch()
    assert find_images(tmp_path) == [tmp_path / "mine/outliers/01.jpg"]
