"""Evaluate: its numbers are those of the exact metrics on the maps that the model makes, and its files are whole."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from metalad.data import load_images, read_category
from metalad.data.corruptions import CORRUPTIONS
from metalad.data.images import read_mask, resize_map, resize_mask
from metalad.nn.pixels import to_batch
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.train import train
from metalad.results.metrics import aupro, auroc, auroc_up_to, average_precision, f1_max
from metalad.results.report import METRIC_NAMES, Report
from metalad.storage.model_file import Model
from tests.tiny import TINY, tiny_category


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tiny_category(tmp_path_factory.mktemp("data") / "cookie", defective=5)
    # A second defect: what was one folder of anomalies becomes two.
    for folder in ("test", "ground_truth"):
        (data / folder / "crumbs").mkdir()
        for file in sorted((data / folder / "anomaly").iterdir())[:2]:
            shutil.move(file, data / folder / "crumbs" / file.name)
    return data


@pytest.fixture(scope="module")
def model(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return train(category, tmp_path_factory.mktemp("run") / "run", method=TINY, epochs=3)


@pytest.fixture(scope="module")
def report(category: Path, model: Model) -> Report:
    return evaluate(model.path.parent, category)


@pytest.mark.parametrize("index", [0, 1])
def test_metrics_are_those_of_the_models_maps(report: Report, model: Model, category: Path, index: int) -> None:
    scoring = report.scorings[index]
    samples = read_category(category).test
    images = load_images(samples, (32, 32))
    with torch.inference_mode():
        batch = to_batch(images.pixels)
        prediction = model.detector.predict(batch, model.detector.residuals(batch), scoring.name)
    maps, scores = prediction.anomaly_map.numpy(), prediction.score.numpy()
    truth = np.array([sample.abnormal for sample in samples])
    masks = [
        read_mask(sample.mask) if sample.mask else np.zeros(size, dtype=bool)
        for sample, size in zip(samples, images.sizes, strict=True)
    ]
    small = [resize_mask(mask, (32, 32)) for mask in masks]
    large = [resize_map(anomaly_map, mask.shape) for anomaly_map, mask in zip(maps, masks, strict=True)]
    for metrics, its_maps, its_masks in (
        (scoring.metrics_model, list(maps), small),
        (scoring.metrics_original, large, masks),
    ):
        pixels = np.concatenate([each.ravel() for each in its_maps])
        labels = np.concatenate([each.ravel() for each in its_masks])
        expected = {
            "pixel_auroc_fpr30": auroc_up_to(pixels, labels),
            "pixel_auroc": auroc(pixels, labels),
            "pixel_aupro": aupro(its_maps, its_masks),
            "pixel_ap": average_precision(pixels, labels),
            "pixel_f1max": f1_max(pixels, labels)[0],
            "image_auroc": auroc(scores, truth),
            "image_ap": average_precision(scores, truth),
            "image_f1max": f1_max(scores, truth)[0],
        }
        for name in METRIC_NAMES:
            assert getattr(metrics, name) == pytest.approx(expected[name], abs=1e-4), name


def test_each_defect_is_set_against_all_good_images(report: Report) -> None:
    rows = {row.defect: row for row in report.chosen.per_defect}
    assert {name: row.images for name, row in rows.items()} == {"anomaly": 3, "crumbs": 2}
    scores = {defect: [v.score for v in report.images if v.defect == defect] for defect in ("good", *rows)}
    for defect, row in rows.items():
        labels = np.array([False] * len(scores["good"]) + [True] * len(scores[defect]))
        expected = auroc(np.array(scores["good"] + scores[defect]), labels)
        assert row.metrics.image_auroc == pytest.approx(expected)
        assert row.found == sum(score > report.chosen.threshold for score in scores[defect])


def test_the_threshold_gives_the_verdicts(report: Report, model: Model) -> None:
    assert report.chosen.threshold == pytest.approx(model.header.thresholds["calibrated"])
    assert all(verdict.is_anomalous == (verdict.score > report.chosen.threshold) for verdict in report.images)
    counts = report.chosen.confusion
    assert counts.tp + counts.fn == 5
    assert counts.fp + counts.tn == 3


def test_scoring_and_false_alarms_are_chosen_anew(model: Model, category: Path, tmp_path: Path) -> None:
    raw = evaluate(model.path, category, out=tmp_path, scoring="raw", false_alarms=0.2)
    assert [scoring.name for scoring in raw.scorings] == ["raw", "calibrated"]
    assert raw.chosen.threshold == pytest.approx(model.detector.threshold(0.2, "raw"))
    assert all(verdict.score == verdict.raw_score for verdict in raw.verdicts)


def test_a_rate_beyond_the_good_images_is_noted(model: Model, category: Path, tmp_path: Path) -> None:
    bold, careful = (evaluate(model.path, category, out=tmp_path, false_alarms=rate).notes for rate in (0.5, 0.001))
    assert not any("one in 1000" in note for note in bold)
    assert any("one in 1000 is like" in note and "--false-alarms" in note for note in careful)


def test_reports_are_written_whole(report: Report, model: Model) -> None:
    folder = model.path.parent / "evaluation"
    stored = json.loads((folder / "report.json").read_text())
    assert stored == json.loads(json.dumps(report.to_json()))
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/') >= 4 * len(report.images)
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert {file.name for file in folder.iterdir()} == {"report.json", "report.html"}


def test_masks_are_optional(model: Model, category: Path, tmp_path: Path) -> None:
    data = shutil.copytree(category, tmp_path / "data")
    shutil.rmtree(data / "ground_truth")
    report = evaluate(model.path, data, out=tmp_path / "out")
    assert report.chosen.metrics_model.pixel_auroc is None
    assert report.chosen.metrics_model.image_auroc is not None
    assert "5 abnormal images have no ground-truth mask" in report.notes[0]


def test_nuisances_are_tried_where_they_are_wanted(
    report: Report, model: Model, category: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tried = evaluate(model.path, category, out=tmp_path, corruption=True, progress=True)
    assert "corruptions" in capfd.readouterr().err
    assert Report.from_json(json.loads((tmp_path / "report.json").read_text())) == tried
    page = (tmp_path / "report.html").read_text()
    for scoring, before in zip(tried.scorings, report.scorings, strict=True):
        assert [row.corruption for row in scoring.per_corruption] == list(CORRUPTIONS)
        assert before.per_corruption == ()
        assert all(name in page for name in CORRUPTIONS)
    assert tried.verdicts == report.images


def test_sizes_of_defects_add_up(report: Report) -> None:
    for scoring in report.scorings:
        assert sum(row.images for row in scoring.per_size) == 5
        assert sum(row.found for row in scoring.per_size) == scoring.confusion.tp


def test_without_good_images_no_nuisance_is_tried(model: Model, category: Path, tmp_path: Path) -> None:
    data = shutil.copytree(category, tmp_path / "data")
    shutil.rmtree(data / "test" / "good")
    report = evaluate(model.path, data, out=tmp_path / "out", corruption=True)
    assert report.chosen.per_corruption == ()
    assert any("no good test images" in note for note in report.notes)
