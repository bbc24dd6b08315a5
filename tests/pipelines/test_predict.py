"""predict: order of the results, names and contents of the files, errors, and stopping."""

import csv
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import UInt8
from PIL import Image

from metalad.data import Sample, load_images
from metalad.data.formats import readable_names
from metalad.data.images import image_size, read_image
from metalad.detectors.base import Detector, Scoring
from metalad.inference.stream import infer_stream
from metalad.methods.metal import Metal
from metalad.nn.pixels import to_batch
from metalad.pipelines.demo import DATA
from metalad.pipelines.load import load
from metalad.pipelines.model import Model
from metalad.pipelines.predict import predict, saving, sources
from metalad.pipelines.predict.formats import IMAGE_COLUMNS, REGION_COLUMNS
from metalad.pipelines.predict.output_names import OutputNames
from metalad.pipelines.predict.run import _check
from metalad.pipelines.predict.saving import Writer
from metalad.pipelines.predict.sources import Source, find_sources
from metalad.results.prediction import SavedPrediction
from metalad.runtime.choices import Format
from metalad.runtime.errors import ConfigError, DataError, ImageError, ModelFileError, RunError
from tests.noise import draw, draw_many, files_in, noise_run


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: for tensors this small, several only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return load(run)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def names(results: list[SavedPrediction]) -> list[str]:
    return [path_of(result).name for result in results]


def path_of(result: SavedPrediction) -> Path:
    assert result.path is not None
    return result.path


# Results


def test_scores_are_those_of_the_detector_in_the_order_of_the_files(run: Path, model: Model, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 11)
    results = list(predict(run, [folder], tmp_path / "out", batch_size=4))
    assert names(results) == [f"{index:03}.png" for index in range(11)]
    images = load_images([Sample(path_of(result), False, "good", None) for result in results], (32, 32))
    with torch.inference_mode():
        expected = model.stored.detector(to_batch(images.pixels)).score.numpy()
    np.testing.assert_allclose(np.array([result.score for result in results], float), expected, rtol=1e-5)
    assert {result.threshold for result in results} == {model.threshold}
    decisions = [result.is_anomalous for result in results]
    assert decisions == [score > model.threshold for score in expected]
    assert set(decisions) == {False, True}  # otherwise the line above compares nothing


def test_scoring_and_false_alarms_choose_score_and_threshold(run: Path, model: Model, tmp_path: Path) -> None:
    image = draw(tmp_path / "x.png")

    def predicted(scoring: Scoring | None, false_alarms: float | None) -> SavedPrediction:
        arguments = {"scoring": scoring, "false_alarms": false_alarms}
        (result,) = predict(run, [image], tmp_path / "out", overwrite=True, **arguments)  # type: ignore[arg-type]
        return result

    own, rare, raw = predicted(None, None), predicted(None, 0.001), predicted("raw", None)
    assert own == predicted("calibrated", model.header.false_alarms)
    assert (rare.score, raw.threshold) == (own.score, model.threshold_for(model.header.false_alarms, "raw"))
    assert rare.threshold > own.threshold
    assert raw.score != own.score


def test_a_given_threshold_decides_without_a_caution(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = draw(tmp_path / "x.png")
    (own,) = predict(run, [image], tmp_path / "own", false_alarms=0.001)
    assert own.score is not None
    (warning,) = [record for record in caplog.records if "extrapolation" in record.getMessage()]
    assert (warning.levelname, own.caution) == ("WARNING", "severe")
    assert warning.getMessage().startswith("SEVERE WARNING: ")
    assert own.to_dict()["caution"] == "severe"
    caplog.clear()
    for threshold, is_anomalous in ((own.score, False), (own.score * 0.999, True)):
        (result,) = predict(run, [image], tmp_path / "out", threshold=threshold, overwrite=True)
        assert (result.score, result.threshold, result.is_anomalous) == (own.score, threshold, is_anomalous)
        assert "caution" not in result.to_dict()
    assert not caplog.records
    with pytest.raises(ConfigError, match="threshold and false_alarms exclude each other"):
        predict(run, [image], tmp_path / "out", threshold=1.0, false_alarms=0.1)


def test_an_image_of_a_single_color_is_noted(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw_many(tmp_path / "images", 2)
    Image.new("RGB", (40, 32)).save(tmp_path / "images" / "black.png")
    found = {path_of(result).name: result.notes for result in predict(run, [tmp_path / "images"], out=tmp_path / "out")}
    assert [name for name, notes in found.items() if notes] == ["black.png"]
    assert found["black.png"][0].startswith("of a single color")
    assert "1 image of a single color" in caplog.text


def test_a_result_does_not_depend_on_the_other_images_of_its_batch(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 6)
    together = list(predict(run, [folder], tmp_path / "together", batch_size=4))
    for result in together:
        (alone,) = predict(run, [path_of(result)], tmp_path / "alone", batch_size=4, overwrite=True)
        assert alone.score == result.score
        assert alone.map is not None
        assert result.map is not None
        assert alone.map.read_bytes() == result.map.read_bytes()


def test_images_of_another_size_than_the_models(run: Path, tmp_path: Path) -> None:
    paths = sorted((DATA / "test" / "anomaly").glob("*.jpg"))[:2]
    for result in predict(run, paths, tmp_path):
        assert result.map is not None
        assert result.overlay is not None
        size = image_size(path_of(result))
        assert pixels_of(result.map).dtype == np.uint16
        assert pixels_of(result.map).shape == size
        assert pixels_of(result.overlay).shape == (*size, 3)
        assert result.overlay.suffix == ".jpg"


# Contents of the files


def test_the_value_16384_of_a_map_file_is_the_threshold(run: Path, model: Model, tmp_path: Path) -> None:
    image = draw(tmp_path / "x.png", seed=1, size=(32, 32))
    (result,) = predict(run, [image], tmp_path / "out", batch_size=1)  # another batch size has other last bits
    with torch.inference_mode():
        anomaly_map = model.stored.detector(to_batch(read_image(image)[None])).anomaly_map[0].numpy()
    assert result.map is not None
    written = pixels_of(result.map).astype(float) / 16384 * result.threshold
    assert np.abs(written - anomaly_map).max() <= 0.51 / 16384 * result.threshold
    assert written.max() > 0.5 * result.threshold


def test_a_large_image_is_decoded_again_for_the_same_overlay(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = draw(tmp_path / "x.png")
    (held,) = predict(run, [image], tmp_path / "held")
    monkeypatch.setattr("metalad.inference.stream.HELD_PIXELS", 10)
    (again,) = predict(run, [image], tmp_path / "again")
    assert held.overlay is not None
    assert again.overlay is not None
    assert held.overlay.read_bytes() == again.overlay.read_bytes()


@pytest.mark.parametrize(("threshold", "step"), [(1e-60, 65535), (1e300, 0)])
def test_map_files_are_clipped_for_extreme_thresholds(
    model: Model, tmp_path: Path, threshold: float, step: int
) -> None:
    image = draw(tmp_path / "x.png")
    writer = Writer(tmp_path / "out", "calibrated", threshold)
    predictor = writer.predictor(model.opened.engine, 4)
    (result,) = infer_stream(predictor, [Source(image, "x")], saving.load_source, writer.write)
    assert result.map is not None
    assert set(pixels_of(result.map).flat) == {step}


def test_the_overlay_of_an_image_too_wide_for_jpeg_is_a_png(run: Path, tmp_path: Path) -> None:
    image = draw(tmp_path / "x.png", size=(8, 66_000))
    (result,) = predict(run, [image], tmp_path / "out", maps=False)
    assert result.overlay == tmp_path / "out" / "overlays" / "x.png"
    assert pixels_of(result.overlay).shape == (8, 66_000, 3)


@pytest.mark.parametrize(("maps", "overlays"), [(True, False), (False, True), (False, False)])
def test_maps_and_overlays_can_be_turned_off(run: Path, tmp_path: Path, maps: bool, overlays: bool) -> None:
    image = draw(tmp_path / "x.png")
    (result,) = predict(run, [image], tmp_path / "out", maps=maps, overlays=overlays)
    assert (result.map is not None, result.overlay is not None) == (maps, overlays)
    expected = {"predictions.jsonl": True, "maps/x.png": maps, "overlays/x.jpg": overlays}
    assert files_in(tmp_path / "out") == {name for name, wanted in expected.items() if wanted}


def test_the_results_file_contains_the_yielded_results(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 3)
    (folder / "001.png").write_text("no image")
    results = list(predict(run, [folder], tmp_path / "out"))
    lines = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [result.to_dict() for result in results]
    assert list(results[0].to_dict()) == [
        "path",
        "score",
        "threshold",
        "is_anomalous",
        "height",
        "width",
        "regions",
        "map",
        "overlay",
    ]
    assert list(results[1].to_dict()) == ["path", "error"]


# Formats


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of images with no region, one or several, and an unreadable one; one image is stored rotated."""
    folder = draw_many(tmp_path / "in", 6)
    pixels = pixels_of(draw(folder / "004.png", size=(96, 96)))
    for rows in (slice(10), slice(86, 96)):
        for columns in (slice(10), slice(86, 96)):
            pixels[rows, columns] = (255, 0, 0)
    Image.fromarray(pixels).save(folder / "004.png")
    (folder / "002.png").write_text("no image")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "003.png") as image:
        image.save(folder / "003.png", exif=exif)
    return folder


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_csv_has_a_row_for_each_region_and_for_each_image_without_one(run: Path, mixed: Path, tmp_path: Path) -> None:
    results = list(predict(run, [mixed], tmp_path / "out", format="csv"))
    assert {len(result.regions) > 1 for result in results} == {True, False}
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*IMAGE_COLUMNS, *REGION_COLUMNS]
    lines = lines_of(tmp_path / "out")
    assert len(rows) == sum(max(1, len(line.get("regions", ()))) for line in lines)
    remaining = iter(rows)
    for line in lines:
        regions = line.get("regions", [])
        for number in range(max(1, len(regions))):
            row = next(remaining)
            assert row["path"] == line["path"]
            assert row["error"] == line.get("error", "")
            if "error" in line:
                assert {row[name] for name in ("score", "threshold", "is_anomalous", *REGION_COLUMNS)} == {""}
                continue
            assert (float(row["score"]), float(row["threshold"])) == (line["score"], line["threshold"])
            assert row["is_anomalous"] == ("true" if line["is_anomalous"] else "false")
            if not regions:
                assert {row[name] for name in REGION_COLUMNS} == {""}
                continue
            assert int(row["region"]) == number + 1
            assert [int(row[name]) for name in ("left", "top", "width", "height")] == regions[number]["box"]
            assert int(row["area"]) == regions[number]["area"]
            assert float(row["peak_score"]) == regions[number]["peak_score"]


def test_csv_quotes_names_with_commas_quotes_and_line_breaks(run: Path, tmp_path: Path) -> None:
    image = draw(tmp_path / 'a, "b"\n.png')
    list(predict(run, [image], tmp_path / "out", format="csv"))
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {str(image)}


@pytest.mark.parametrize("format", ["csv", "coco"])
def test_a_name_that_is_not_utf_8_is_written_with_escapes(run: Path, tmp_path: Path, format: Format) -> None:
    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / os.fsdecode(b"Gr\xf6\xdfe.png")
    try:
        shutil.copy(draw(tmp_path / "a.png"), image)
    except OSError:
        pytest.skip("the file system takes names in UTF-8 only")
    (result,) = predict(run, tmp_path / "images", tmp_path / "out", format=format)  # one path
    assert result.path == image
    text = (tmp_path / "out" / f"predictions.{'csv' if format == 'csv' else 'coco.json'}").read_text(encoding="utf-8")
    assert "Gr\\udcf6\\udcdfe.png" in text


def test_coco_has_an_image_for_each_score_and_an_annotation_for_each_region(
    run: Path, mixed: Path, tmp_path: Path
) -> None:
    list(predict(run, [mixed], tmp_path / "out", format="coco"))
    coco = json.loads((tmp_path / "out" / "predictions.coco.json").read_text(encoding="utf-8"))
    assert set(coco) == {"info", "categories", "images", "annotations"}
    assert coco["categories"] == [{"id": 1, "name": "anomaly"}]
    lines = [line for line in lines_of(tmp_path / "out") if "error" not in line]
    assert len(coco["images"]) == len(lines) == 5
    images = {image["id"]: image for image in coco["images"]}
    assert len(images) == 5
    for image, line in zip(coco["images"], lines, strict=True):
        assert set(image) == {"id", "file_name", "height", "width", "score", "threshold", "is_anomalous"}
        assert image["file_name"] == line["path"]
        assert (image["height"], image["width"]) == read_image(Path(line["path"])).shape[:2]
        assert [image[name] for name in ("score", "threshold", "is_anomalous")] == [
            line[name] for name in ("score", "threshold", "is_anomalous")
        ]
    assert {(image["height"], image["width"]) for image in coco["images"]} == {(40, 24), (24, 40), (96, 96)}
    regions = [(line["path"], region) for line in lines for region in line["regions"]]
    assert len(coco["annotations"]) == len(regions) > 4
    assert len({annotation["id"] for annotation in coco["annotations"]}) == len(regions)
    for annotation, (path, region) in zip(coco["annotations"], regions, strict=True):
        names = {"id", "image_id", "category_id", "bbox", "area", "segmentation", "iscrowd", "score"}
        assert set(annotation) == names
        image = images[annotation["image_id"]]
        assert image["file_name"] == path
        assert (annotation["category_id"], annotation["iscrowd"]) == (1, 0)
        assert annotation["bbox"] == region["box"]
        assert annotation["area"] == region["area"]
        assert annotation["score"] == region["peak_score"]
        (polygon,) = annotation["segmentation"]
        assert len(polygon) >= 6
        assert all(0 <= x <= image["width"] for x in polygon[::2])
        assert all(0 <= y <= image["height"] for y in polygon[1::2])


def test_coco_of_images_without_regions_is_valid(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    list(predict(run, [tmp_path / "x.png"], tmp_path / "out", format="coco"))
    coco = json.loads((tmp_path / "out" / "predictions.coco.json").read_text(encoding="utf-8"))
    assert (coco["images"], coco["annotations"]) == ([], [])


@pytest.mark.parametrize(("format", "name"), [("csv", "predictions.csv"), ("coco", "predictions.coco.json")])
def test_a_finished_prediction_is_converted_without_inference(
    run: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any, name: str
) -> None:
    list(predict(run, [mixed], tmp_path / "at once", format=format))
    results = list(predict(run, [mixed], tmp_path / "out"))
    assert files_in(tmp_path / "out") == files_in(tmp_path / "at once") - {name}
    monkeypatch.setattr(saving, "read_image", lambda *_: pytest.fail("an image was read"))
    assert list(predict(run, [mixed], tmp_path / "out", format=format, resume=True)) == results
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()


# Names


def test_outputs_mirror_the_folders_of_the_images_with_unique_names(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("x.png", "x.bmp", "X.JPG", "x-2.png", "a/x.png", "a/b/x.png", "b/x.png"):
        draw(folder / name, seed=len(name))
    results = list(predict(run, [folder], tmp_path / "out"))
    maps = [result.map.relative_to(tmp_path / "out" / "maps").as_posix() for result in results if result.map]
    assert len({name.casefold() for name in maps}) == len(results) == 7
    assert {"a/x.png", "a/b/x.png", "b/x.png"} <= set(maps)
    assert len([name for name in files_in(tmp_path / "out") if name.startswith("overlays/")]) == 7


def test_outputs_of_several_paths_are_named_below_their_common_folder(tmp_path: Path) -> None:
    one, two = draw(tmp_path / "one" / "x.png"), draw(tmp_path / "two" / "deep" / "x.png")
    out = tmp_path / "out"

    def named(*paths: Path) -> list[str]:
        return [source.name for source in find_sources(paths, out)]

    assert named(one.parent, two.parent.parent) == ["one/x", "two/deep/x"]
    assert named(one, two) == ["one/x", "two/deep/x"]
    assert named(one) == ["x"]
    assert named(two.parent.parent) == ["deep/x"]
    assert named(one, one) == ["x", "x-2"]
    assert named(one.parent / ".." / "two" / "deep" / "x.png", one) == ["two/deep/x", "one/x"]


@given(st.lists(st.sampled_from(["a", "A", "a-2", "a-3", "b", "a.c"]), max_size=12))
def test_names_are_unique_for_any_names_of_images(stems: list[str]) -> None:
    paths = [Path("/in") / f"{stem}.{index}.png".replace(f".{index}.", ".") for index, stem in enumerate(stems)]
    found = [source.name for source in sources._named(iter(paths), Path("/in"), OutputNames(Path("/nowhere")))]
    assert len({name.casefold() for name in found}) == len(paths)


def test_output_pictures_in_the_input_folder_are_not_inputs(run: Path, tmp_path: Path) -> None:
    draw_many(tmp_path, 3)
    for overwrite in (False, True):
        results = list(predict(run, [tmp_path], tmp_path, overwrite=overwrite))
        assert names(results) == ["000.png", "001.png", "002.png"]
    with pytest.raises(DataError, match="no images in"):
        predict(run, [tmp_path / "maps"], tmp_path)


# Errors


def test_an_unreadable_image_gets_an_error_and_the_others_are_scored(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 9)
    for name in ("000.png", "004.png", "008.png"):
        (folder / name).write_text("no image")
    results = list(predict(run, [folder], tmp_path / "out", batch_size=2))
    assert [result.error is not None for result in results] == [index % 4 == 0 for index in range(9)]
    assert results[4].error == f"not a {readable_names()} image"
    assert (path_of(results[4]).name, results[4].score, results[4].is_anomalous) == ("004.png", None, None)
    assert len(files_in(tmp_path / "out" / "maps")) == 6


def test_a_folder_of_unreadable_images_only(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    (result,) = predict(run, [tmp_path / "x.png"], tmp_path / "out")
    assert result.error == "the file is empty"


def test_strict_yields_the_results_before_the_first_unreadable_image(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 6)
    (folder / "003.png").write_text("no image")
    results = predict(run, [folder], tmp_path / "out", strict=True)
    assert names([next(results) for _ in range(3)]) == ["000.png", "001.png", "002.png"]
    with pytest.raises(ImageError, match=r"003\.png: not a PNG"):
        next(results)
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_a_large_image_that_is_deleted_before_its_overlay_is_an_error(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, read = draw(tmp_path / "x.png"), iter([None])

    def read_once(path: Path, *_: object) -> UInt8[np.ndarray, "height width 3"]:
        if next(read, image) is None:
            return read_image(path)
        return read_image(tmp_path / "gone.png")

    monkeypatch.setattr("metalad.inference.stream.HELD_PIXELS", 10)
    monkeypatch.setattr(saving, "read_image", read_once)
    (result,) = predict(run, [image], tmp_path / "out")
    assert result.error is not None
    assert "no such file" in result.error


def test_impossible_arguments_are_errors_of_the_call(run: Path, tmp_path: Path) -> None:
    image = draw(tmp_path / "x.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty; looked for files named .*\.bmp"):
        predict(run, [tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(DataError, match=r"cannot reach .*gone: No such file"):
        predict(run, [image, tmp_path / "gone"], tmp_path / "out")
    (tmp_path / "link.png").symlink_to("/nowhere/x.png")
    with pytest.raises(DataError, match=r"link\.png is a link to /nowhere/x\.png, which does not exist; mend the link"):
        predict(run, [image, tmp_path / "link.png"], tmp_path / "out")
    with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1"):
        predict(run, [image], tmp_path / "out", batch_size=0)
    with pytest.raises(ConfigError, match="false_alarms is 2"):
        predict(run, [image], tmp_path / "out", false_alarms=2.0)
    with pytest.raises(ConfigError, match="format is 'xml'; it must be one of jsonl, csv, coco"):
        # The checks of types in tests would raise before.
        _check(None, None, "xml")
    with pytest.raises(ModelFileError):
        predict(tmp_path, [image], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_an_error_before_any_image_is_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = draw(tmp_path / "x.png")
    monkeypatch.setattr(saving, "read_image", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(RunError, match="cannot write"):
        next(predict(run, [image], image))


def test_a_failed_write_stops_predict(run: Path, tmp_path: Path) -> None:
    image = draw(tmp_path / "x.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "maps").touch()
    with pytest.raises(RunError, match="a file exists where a folder is needed"):
        list(predict(run, [image], tmp_path / "out"))


# Stopping


def no_threads() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("metalad")]


def test_closing_leaves_complete_files_and_no_threads(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 40)
    threads = torch.get_num_threads()
    results = predict(run, [folder], tmp_path / "out", batch_size=2)
    next(results)
    results.close()
    assert no_threads()
    assert torch.get_num_threads() == threads
    written = files_in(tmp_path / "out")
    assert "predictions.jsonl" not in written
    assert not [name for name in written if name.endswith(".tmp")]
    assert 0 < len(written) < 40
    for name in written:
        pixels_of(tmp_path / "out" / name)


def test_an_interrupt_in_the_model_stops_all_threads(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = iter(range(2))

    def interrupted(detector: Detector, *arguments: Any) -> Any:
        if next(batches, None) is None:
            raise KeyboardInterrupt
        return original(detector, *arguments)

    original: Callable[..., Any] = Metal.predict
    monkeypatch.setattr(Metal, "predict", interrupted)
    folder = draw_many(tmp_path / "in", 30)
    with pytest.raises(KeyboardInterrupt):
        list(predict(run, [folder], tmp_path / "out", batch_size=2))
    assert no_threads()
    assert not [name for name in files_in(tmp_path / "out") if name.endswith((".tmp", ".jsonl"))]
