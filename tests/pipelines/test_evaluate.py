"""Evaluate: the metrics are the exact ones of the model's maps, and the written files are complete."""

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalad.data import load_images, read_category
from metalad.data.corruptions import CORRUPTIONS
from metalad.data.formats import readable_names
from metalad.data.images import read_image, read_mask, resize_image, resize_map, resize_mask
from metalad.detectors.residuals import Residuals
from metalad.methods.metal import Metal
from metalad.nn.pixels import to_batch
from metalad.pipelines.evaluate import evaluate
from metalad.pipelines.model import Model
from metalad.pipelines.train import train
from metalad.results.metrics import aupro, auroc, auroc_up_to, average_precision, f1_max
from metalad.results.report import METRIC_NAMES, Report
from metalad.runtime.errors import ConfigError, DataError, ImageError, RunError
from tests.tiny import TINY, tiny_category


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tiny_category(tmp_path_factory.mktemp("data") / "cookie", defective=5)
    # A second defect: two of the images are moved to another folder.
    for folder in ("test", "ground_truth"):
        (data / folder / "crumbs").mkdir()
        for file in sorted((data / folder / "anomaly").iterdir())[:2]:
            shutil.move(file, data / folder / "crumbs" / file.name)
    return data


@pytest.fixture(scope="module")
def model(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return train(category, tmp_path_factory.mktemp("run") / "run", method=TINY, epochs=3)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report") / "evaluation"


@pytest.fixture(scope="module")
def report(category: Path, model: Model, out: Path) -> Report:
    return evaluate(model, category, out=out)


def test_a_given_threshold_decides(report: Report, model: Model, category: Path) -> None:
    separation = report.chosen.separation
    assert separation is not None
    assert report.caution == model.caution()
    assert report.caution is not None
    chosen = evaluate(model, category, threshold=separation.threshold)
    counts = chosen.chosen.confusion
    assert chosen.threshold == separation.threshold
    assert (counts.tp, counts.fp) == (separation.found, separation.rejected)
    assert (chosen.caution, chosen.chosen.false_alarm_rate) == (None, None)
    assert chosen.scorings[1].threshold == report.scorings[1].threshold
    with pytest.raises(ConfigError, match="exclude each other"):
        evaluate(model, category, threshold=1.0, false_alarms=0.1)


@pytest.mark.parametrize("index", [0, 1])
def test_metrics_are_the_exact_metrics_of_the_models_maps(
    report: Report, model: Model, category: Path, index: int
) -> None:
    scoring = report.scorings[index]
    samples = read_category(category).test
    images = load_images(samples, (32, 32))
    with torch.inference_mode():
        batch = to_batch(images.pixels)
        detector = model.stored.detector
        prediction = detector.predict(batch, detector.residuals(batch), scoring.name)
    maps, scores = prediction.anomaly_map.numpy(), prediction.score.numpy()
    truth = np.array([sample.abnormal for sample in samples])
    masks = [
        read_mask(sample.mask) if sample.mask else np.zeros(size, dtype=bool)
        for sample, size in zip(samples, images.sizes, strict=True)
    ]
    small = [resize_mask(mask, (32, 32)) for mask in masks]
    large = [resize_map(anomaly_map, mask.shape) for anomaly_map, mask in zip(maps, masks, strict=True)]
    for metrics, some_maps, some_masks in (
        (scoring.metrics_model, list(maps), small),
        (scoring.metrics_original, large, masks),
    ):
        pixels = np.concatenate([each.ravel() for each in some_maps])
        labels = np.concatenate([each.ravel() for each in some_masks])
        expected = {
            "pixel_auroc_fpr30": auroc_up_to(pixels, labels),
            "pixel_auroc": auroc(pixels, labels),
            "pixel_aupro": aupro(some_maps, some_masks),
            "pixel_ap": average_precision(pixels, labels),
            "pixel_f1max": f1_max(pixels, labels)[0],
            "image_auroc": auroc(scores, truth),
            "image_ap": average_precision(scores, truth),
            "image_f1max": f1_max(scores, truth)[0],
        }
        for name in METRIC_NAMES:
            assert getattr(metrics, name) == pytest.approx(expected[name], abs=1e-4), name


def test_each_defect_is_compared_with_all_good_images(report: Report) -> None:
    rows = {row.defect: row for row in report.chosen.per_defect}
    assert {name: row.images for name, row in rows.items()} == {"anomaly": 3, "crumbs": 2}
    scores = {defect: [image.score for image in report.images if image.defect == defect] for defect in ("good", *rows)}
    for defect, row in rows.items():
        labels = np.array([False] * len(scores["good"]) + [True] * len(scores[defect]))
        expected = auroc(np.array(scores["good"] + scores[defect]), labels)
        assert row.metrics.image_auroc == pytest.approx(expected)
        assert row.found == sum(score > report.chosen.threshold for score in scores[defect])


def test_images_above_the_threshold_are_anomalous(report: Report, model: Model) -> None:
    assert report.chosen.threshold == pytest.approx(model.header.thresholds["calibrated"])
    assert all(image.is_anomalous == (image.score > report.chosen.threshold) for image in report.images)
    counts = report.chosen.confusion
    assert counts.tp + counts.fn == 5
    assert counts.fp + counts.tn == 3


def test_scoring_and_false_alarms_can_differ_from_the_models_own(model: Model, category: Path, tmp_path: Path) -> None:
    raw = evaluate(model, category, out=tmp_path, scoring="raw", false_alarms=0.2)
    assert [scoring.name for scoring in raw.scorings] == ["raw", "calibrated"]
    assert raw.chosen.threshold == pytest.approx(model.stored.detector.threshold(0.2, "raw"))
    assert all(image.score == image.raw_score for image in raw.images)


def test_a_false_alarm_rate_that_the_good_images_do_not_support_is_noted(
    model: Model, category: Path, tmp_path: Path
) -> None:
    bold, careful = (evaluate(model, category, out=tmp_path, false_alarms=rate).caution for rate in (0.5, 0.001))
    assert bold is None
    assert careful is not None
    assert careful.severity == "severe"
    assert "for 0.1 % false alarms is an extrapolation" in careful.text


def test_the_report_and_the_page_are_complete(report: Report, out: Path) -> None:
    stored = json.loads((out / "report.json").read_text())
    assert stored == json.loads(json.dumps(report.to_json()))
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/') >= 4 * len(report.images)
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert {file.name for file in out.iterdir()} == {"report.json", "report.html", "report_files"}


def test_pictures_are_written_at_full_size_unless_thumbnails_have_it(
    report: Report, out: Path, model: Model, category: Path, tmp_path: Path
) -> None:
    folder, kinds = out / "report_files", ("anomaly-map.jpg", "ground-truth.png", "input.jpg")
    numbers = range(len(report.images))
    assert sorted(file.name for file in folder.iterdir()) == [f"{n:05}-{kind}" for n in numbers for kind in kinds]
    for number, image in enumerate(report.images):
        with Image.open(folder / f"{number:05}-input.jpg") as picture:
            assert np.abs(np.asarray(picture, np.int16) - read_image(category / image.path)).mean() < 3
    page = (out / "report.html").read_text()
    assert page.count('data-full="report_files/') == 3 * len(report.images)
    assert page.count("data-peak=") == len(report.images)

    small = shutil.copytree(category, tmp_path / "cookie")
    for file in (*(small / "test").rglob("*.jpg"), *(small / "ground_truth").rglob("*.png")):
        with Image.open(file) as picture:
            picture.resize((150, 200)).save(file)
    again = shutil.copytree(out, tmp_path / "out")
    evaluate(model, small, out=again, overwrite=True)
    assert not (again / "report_files").exists()
    assert "data-peak=" not in (again / "report.html").read_text()


def test_a_folder_that_cannot_be_written_is_refused_before_images_are_scored(
    model: Model, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("metalad.pipelines.evaluate.infer_stream", None)
    with pytest.raises(RunError, match=r"cannot write .*report\.json: a file exists where a folder is needed"):
        evaluate(model, category, out=tmp_path / "file" / "out")


def test_the_report_contains_the_threshold_of_many_rates(report: Report, model: Model) -> None:
    for scoring in report.scorings:
        assert all(model.stored.threshold(rate, scoring.name) == limit for rate, limit in scoring.rate_thresholds)
        rates, limits = (list(column) for column in zip(*scoring.rate_thresholds, strict=True))
        assert rates == sorted(rates)
        assert limits == sorted(limits, reverse=True)
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_masks_are_optional(model: Model, category: Path, tmp_path: Path) -> None:
    data = shutil.copytree(category, tmp_path / "data")
    shutil.rmtree(data / "ground_truth")
    report = evaluate(model, data, out=tmp_path / "out")
    assert report.chosen.metrics_model.pixel_auroc is None
    assert report.chosen.metrics_model.image_auroc is not None
    assert "5 anomalous images have no ground-truth mask" in report.notes[0]


def test_corruptions_are_evaluated_on_request(report: Report, model: Model, category: Path, tmp_path: Path) -> None:
    corrupted = evaluate(model, category, out=tmp_path, corruptions=True)
    assert Report.from_json(json.loads((tmp_path / "report.json").read_text())) == corrupted
    page = (tmp_path / "report.html").read_text()
    for scoring, before in zip(corrupted.scorings, report.scorings, strict=True):
        assert [row.corruption for row in scoring.per_corruption] == list(CORRUPTIONS)
        assert before.per_corruption == ()
        assert all(name in page for name in CORRUPTIONS)
        assert dataclasses.replace(scoring, per_corruption=()) == before
    assert corrupted.images == report.images


def test_good_images_are_corrupted_with_noise_that_depends_on_their_number(model: Model, category: Path) -> None:
    found = evaluate(model, category, corruptions=True, scoring="raw").chosen
    samples = read_category(category).test
    labels = np.array([sample.abnormal for sample in samples])
    for row in found.per_corruption:
        scores = []
        for number, sample in enumerate(samples):
            pixels = resize_image(read_image(sample.path), (32, 32))
            if not sample.abnormal:
                pixels = CORRUPTIONS[row.corruption](pixels, np.random.default_rng(number))
            scores.append(model.predict(pixels, scoring="raw").score)
        good = np.array(scores)[~labels]
        assert row.image_auroc == pytest.approx(auroc(np.array(scores), labels))
        assert row.false_alarm_rate == (good > found.threshold).mean()
        assert row.images == 3


def test_the_rows_of_sizes_contain_every_anomalous_image(report: Report) -> None:
    for scoring in report.scorings:
        assert sum(row.images for row in scoring.per_size) == 5
        assert sum(row.found for row in scoring.per_size) == scoring.confusion.tp


def test_without_good_images_no_corruption_is_evaluated(model: Model, category: Path, tmp_path: Path) -> None:
    data = shutil.copytree(category, tmp_path / "data")
    shutil.rmtree(data / "test" / "good")
    report = evaluate(model, data, out=tmp_path / "out", corruptions=True)
    assert report.chosen.per_corruption == ()
    (note,) = [note for note in report.notes if note.startswith("There are no good test images: all 5 count as")]
    measured = report.chosen.metrics_model
    assert measured.image_auroc is measured.image_ap is measured.image_f1max is None
    assert "Put good ones into a folder named good" in note


# The public function


def test_a_run_folder_a_file_and_a_model_give_the_same_report(model: Model, category: Path, report: Report) -> None:
    assert model.path is not None
    for given in (model.path.parent, model.path, str(model.path), model):
        assert evaluate(given, category) == report
    assert (report.run, report.data) == ("run", str(category.resolve()))


def test_nothing_is_written_without_out(model: Model, category: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalad.pipelines.evaluate.write_json", lambda *_: pytest.fail("written"))
    monkeypatch.setattr("metalad.pipelines.evaluate.write_html_report", lambda *_: pytest.fail("written"))
    monkeypatch.setattr("metalad.pipelines.evaluate.embed", lambda _: pytest.fail("a picture was encoded"))
    assert len(evaluate(model, category).images) == 8


def test_the_report_has_the_metrics_and_the_threshold_of_the_deciding_scoring(report: Report, model: Model) -> None:
    assert report.metrics == report.scorings[0].metrics_model
    assert report.threshold == report.scorings[0].threshold == model.threshold
    assert report.scorings[0].name == "calibrated"


def test_maps_are_those_of_predict_at_the_images_own_sizes(model: Model, category: Path, report: Report) -> None:
    assert report.maps == ()
    evaluated = evaluate(model, category, maps=True)
    assert evaluated == report
    assert "maps" not in evaluated.to_json()
    assert len(evaluated.maps) == len(evaluated.images) == 8
    for image, anomaly_map in zip(evaluated.images, evaluated.maps, strict=True):
        result = model.predict(category / image.path)
        assert image.score == result.score
        assert image.is_anomalous == result.is_anomalous
        np.testing.assert_array_equal(anomaly_map, result.anomaly_map)


def test_each_image_is_read_and_inferred_once(
    model: Model, category: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reads: list[Path] = []
    batches: list[int] = []

    def reading(path: Path, *_: object) -> np.ndarray:
        reads.append(path)
        return read_image(path)

    def counting(detector: Metal, images: torch.Tensor) -> Residuals:
        batches.append(len(images))
        return residuals(detector, images)

    residuals = Metal.residuals
    monkeypatch.setattr("metalad.data.copies.read_image", reading)
    monkeypatch.setattr(Metal, "residuals", counting)
    evaluate(model, category, out=tmp_path / "out")
    assert len(reads) == len(set(reads)) == 8
    assert batches == [1] * 8


def test_an_unreadable_image_is_skipped_reported_and_logged_unless_strict(
    model: Model, category: Path, report: Report, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(category, tmp_path / "cookie")
    broken = next((data / "test" / "good").iterdir())
    broken.write_text("no image")
    with caplog.at_level(logging.WARNING, "metalad"):
        found = evaluate(model, data, out=tmp_path / "out")
    message = f"cannot read {broken}: not a {readable_names()} image"
    assert caplog.messages == [f"skipped: {message}"]
    assert found.skipped == ((str(broken), f"not a {readable_names()} image"),)
    assert found.images == tuple(image for image in report.images if image.path != f"test/good/{broken.name}")
    with pytest.raises(ImageError, match=r"not a PNG, JPEG"):
        evaluate(model, data, strict=True)
    for image in (data / "test").rglob("*.jpg"):
        image.write_text("no image")
    with pytest.raises(DataError, match="none of 8 images can be read; the first, "):
        evaluate(model, data)


def test_a_folder_without_test_images_is_an_error(model: Model, category: Path, tmp_path: Path) -> None:
    data = shutil.copytree(category, tmp_path / "cookie")
    shutil.rmtree(data / "test")
    with pytest.raises(DataError, match=r"no test images there; .*a folder `test`.*or a file labels\.csv"):
        evaluate(model, data, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
