"""The page that `predict` writes: when it appears, what it lists, and that it is never of mixed results."""

import json
from pathlib import Path
from typing import Any

import pytest

from metalad.data.images import find_images
from metalad.pipelines.predict import predict
from metalad.runtime.errors import RunError
from tests.noise import draw_many, noise_run
from tests.results.pages.test_prediction_page import rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_run(tmp_path_factory.mktemp("run"))


def scores(out: Path) -> dict[str, float]:
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {each["path"]: each["score"] for each in map(json.loads, lines)}


@pytest.mark.parametrize("written", [{}, {"maps": False, "overlays": False}, {"workers": 1}])
def test_the_page_lists_all_results_and_links_to_the_overlays(
    run: Path, tmp_path: Path, written: dict[str, Any]
) -> None:
    folder, out = draw_many(tmp_path / "images", 5), tmp_path / "out"
    (folder / "broken.png").write_text("no image")
    results = list(predict(run, [folder], out, **written))
    listed = rows(out)
    found = {str(result.path): result.score for result in results if result.score is not None}
    assert {row[0]: row[1] for row in listed[:-1]} == found
    assert listed[-1][0] == str(folder / "broken.png")
    for row in listed[:-1]:
        assert (out / row[7]).resolve() == Path(row[0]).resolve()
        assert (out / row[6]).is_file() if written.get("overlays", True) else row[6] == ""
    page = (out / "index.html").read_text(encoding="utf-8")
    assert ("Anomaly map</th>" in page) == written.get("overlays", True)


def test_an_interrupted_prediction_has_no_page_and_a_resumed_one_has(run: Path, tmp_path: Path) -> None:
    folder, out = draw_many(tmp_path / "images", 4), tmp_path / "out"
    begun = predict(run, [folder], out)
    next(begun)
    begun.close()
    assert not (out / "index.html").exists()
    list(predict(run, [folder], out, resume=True))
    assert {row[0]: row[1] for row in rows(out)} == scores(out)
    (out / "index.html").unlink()
    list(predict(run, [folder], out, resume=True))  # all results are there; the page is written again
    assert (out / "index.html").exists()


def test_the_page_is_that_of_the_results_while_they_are_added_to_or_replaced(run: Path, tmp_path: Path) -> None:
    first, second, out = draw_many(tmp_path / "first", 2), draw_many(tmp_path / "second", 3), tmp_path / "out"
    list(predict(run, [first], out))
    with pytest.raises(RunError):
        list(predict(run, [second], out))
    begun = predict(run, [second], out, append=True)
    next(begun)
    begun.close()
    assert {row[0] for row in rows(out)} == set(scores(out)) == {str(file) for file in first.iterdir()}
    list(predict(run, [second], out, resume=True))
    assert {row[0]: row[1] for row in rows(out)} == scores(out)
    assert len(rows(out)) == 5
    begun = predict(run, [second], out, overwrite=True)
    next(begun)
    begun.close()
    assert not (out / "index.html").exists()
    assert not (out / "index_files").exists()
    list(predict(run, [second], out, overwrite=True))
    assert {row[0] for row in rows(out)} == {str(file) for file in second.iterdir()}


def test_pictures_of_pages_are_not_inputs(tmp_path: Path) -> None:
    image = draw_many(tmp_path / "images", 1) / "000.png"
    draw_many(tmp_path / "evaluation" / "report_files", 2)
    assert len(find_images(tmp_path)) == 3
    (tmp_path / "evaluation" / "report.html").touch()
    assert find_images(tmp_path) == [image]
