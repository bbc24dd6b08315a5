"""A folder that holds results: refused, added to, or replaced, but never mixed, and foreign files stay."""

import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from metalad.data.images import find_images
from metalad.data.walking import JOURNAL
from metalad.pipelines.predict import predict
from metalad.pipelines.predict.journal import Journal
from metalad.results.prediction import SavedPrediction
from metalad.runtime.errors import ConfigError, RunError
from tests.noise import draw, draw_many, files_in, noise_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_run(tmp_path_factory.mktemp("run"))


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(found: list[SavedPrediction]) -> list[str]:
    return [result.path.name for result in found if result.path is not None]


def stopped(run: Path, folder: Path, out: Path, after: int, **keywords: Any) -> None:
    begun = predict(run, [folder], out, batch_size=2, **keywords)
    for _ in range(after):
        next(begun)
    begun.close()


def pictures(out: Path) -> set[str]:
    return {name for name in files_in(out) if name.startswith(("maps/", "overlays/"))}


def of(*stems: str) -> set[str]:
    return {f"maps/{stem}.png" for stem in stems} | {f"overlays/{stem}.jpg" for stem in stems}


# Refused


def test_a_used_folder_is_refused_and_unchanged(run: Path, tmp_path: Path) -> None:
    old, new, out = draw_many(tmp_path / "old", 2), draw_many(tmp_path / "new", 3), tmp_path / "out"
    list(predict(run, [old], out))
    before = snapshot(out)
    line = r"out.predictions\.jsonl exists; add to the results there with --append, replace them with --overwrite, or"
    for resume in (False, True):
        with pytest.raises(RunError, match="was started with paths" if resume else line):
            list(predict(run, [new], out, resume=resume))
        assert snapshot(out) == before
    shutil.rmtree(out / JOURNAL)
    for resume in (False, True):
        with pytest.raises(RunError, match=line):
            list(predict(run, [new], out, resume=resume))


def test_an_unfinished_prediction_is_refused(run: Path, tmp_path: Path) -> None:
    old, new, out = draw_many(tmp_path / "old", 9), draw_many(tmp_path / "new", 3), tmp_path / "out"
    stopped(run, old, out, 3)
    with pytest.raises(RunError, match="out holds an unfinished prediction; continue it with --resume, replace it"):
        list(predict(run, [new], out))
    with pytest.raises(RunError, match="unfinished prediction; finish it with --resume before --append"):
        list(predict(run, [new], out, append=True))
    assert len(list(predict(run, [old], out, batch_size=2, resume=True))) == 9


@pytest.mark.parametrize("name", ["maps/mine.png", "overlays/deep/mine.jpg", "predictions.csv"])
def test_a_folder_with_files_of_these_names_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(RunError, match="exists; add to the results"):
        list(predict(run, [draw(tmp_path / "x.png")], out))


def test_a_folder_with_other_files_can_be_used(run: Path, tmp_path: Path) -> None:
    draw_many(tmp_path, 2)
    assert names(list(predict(run, [tmp_path], tmp_path))) == ["000.png", "001.png"]


def test_the_three_options_exclude_each_other(run: Path, tmp_path: Path) -> None:
    image = draw(tmp_path / "x.png")
    for pair in itertools.combinations(("resume", "append", "overwrite"), 2):
        with pytest.raises(ConfigError, match=f"{pair[0]} and {pair[1]} exclude each other"):
            predict(run, [image], tmp_path / "out", **dict.fromkeys(pair, True))  # type: ignore[arg-type]


# --overwrite


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_overwrite_removes_what_predict_wrote_and_nothing_else(
    run: Path, tmp_path: Path, finished: bool, moved: bool
) -> None:
    old, new, out = draw_many(tmp_path / "in/old/maps", 6), draw_many(tmp_path / "new", 1), tmp_path / "out"
    if finished:
        list(predict(run, [old.parent], out, format="csv"))
    else:
        stopped(run, old.parent, out, 3)
    assert pictures(out)
    mine = {"maps/mine.txt", "maps/maps/mine.png", "overlays/mine.jpg", "mine.csv", "000.png"}
    for name in mine:
        (out / name).write_text("mine")
    if moved:
        out = out.rename(tmp_path / "elsewhere")
    found = list(predict(run, [new], out, overwrite=True))
    assert names(found) == ["000.png"]
    assert pictures(out) == of("000") | {name for name in mine if "/" in name}
    assert files_in(out) == of("000") | mine | {"predictions.jsonl"}
    assert all((out / name).read_text() == "mine" for name in mine)
    fresh = list(predict(run, [new], tmp_path / "fresh"))
    assert [result.score for result in found] == [result.score for result in fresh]


def test_an_interrupted_overwrite_can_be_repeated(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, out = draw_many(tmp_path / "old", 4), draw_many(tmp_path / "new", 1), tmp_path / "out"
    list(predict(run, [old], out))
    unlink = Path.unlink

    def fail(path: Path, missing_ok: bool = False) -> None:
        if path.name == "002.png":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", fail)
        with pytest.raises(KeyboardInterrupt):
            list(predict(run, [new], out, overwrite=True))
    assert not (out / "maps/000.png").exists()
    list(predict(run, [new], out, overwrite=True))
    assert pictures(out) == of("000")


# --append


def test_append_keeps_results_and_adds_those_of_new_images(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = draw_many(tmp_path / "in", 3), tmp_path / "out"
    (folder / "001.png").write_text("no image")
    first = list(predict(run, [folder], out, format="csv"))
    before = snapshot(out / "maps")
    draw_many(folder / "more", 2)
    draw(folder / "001.png", 1)
    other = draw(tmp_path / "other/000.png", 5)
    with caplog.at_level("INFO", "metalad"):
        second = list(predict(run, [folder], out, append=True))
    assert "2 images have results in" in caplog.text
    assert names(second) == ["001.png", "000.png", "001.png"]
    third = list(predict(run, [other], out, append=True))
    assert [result.map for result in third] == [out / "maps/000-2.png"]
    kept = [result for result in first if result.error is None]
    assert results(out) == [result.to_dict() for result in (*kept, *second, *third)]
    assert snapshot(out / "maps").items() >= before.items()
    assert pictures(out) == of("000", "001", "002", "more/000", "more/001", "000-2")
    with (out / "predictions.csv").open(encoding="utf-8") as file:  # kept up to date, although not asked for again
        assert {row["path"] for row in csv.DictReader(file)} == {
            str(result.path) for result in (*first, *second, *third)
        }
    assert list(predict(run, [other], out, append=True)) == []
    assert len(results(out)) == 6
    assert list(predict(run, [other], out, resume=True)) == [*kept, *second, *third]


def test_append_into_an_empty_folder_begins(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 2)
    begun = list(predict(run, [folder], tmp_path / "out", append=True))
    assert names(begun) == ["000.png", "001.png"]
    assert results(tmp_path / "out") == [result.to_dict() for result in begun]


@pytest.mark.parametrize("keywords", [{"scoring": "raw"}, {"false_alarms": 0.4}])
def test_results_of_other_settings_are_not_added(run: Path, tmp_path: Path, keywords: dict[str, Any]) -> None:
    folder, out = draw_many(tmp_path / "in", 2), tmp_path / "out"
    list(predict(run, [folder], out))
    before = snapshot(out)
    with pytest.raises(RunError, match=r"was started with (scoring|threshold).*; append with the same"):
        list(predict(run, [draw(tmp_path / "x.png")], out, append=True, **keywords))
    assert snapshot(out) == before


@pytest.mark.parametrize("moment", ["early", "late"])
def test_an_interrupted_append_is_resumed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    old, new, out = draw_many(tmp_path / "old", 3), draw_many(tmp_path / "new", 9), tmp_path / "out"
    first = list(predict(run, [old], out, batch_size=2))
    if moment == "early":
        stopped(run, new, out, 4, append=True)
        assert len(results(out)) == 3
    else:
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "finish", lambda _: None)
            list(predict(run, [new], out, batch_size=2, append=True))
        assert len(results(out)) == 12
    second = list(predict(run, [new], out, batch_size=2, resume=True))
    assert len(second) == 9
    assert results(out) == [result.to_dict() for result in (*first, *second)]
    assert [path.name for path in (out / JOURNAL).iterdir()] == ["plan.json"]


# Results of an unfinished prediction


def test_pictures_of_an_unfinished_prediction_are_not_inputs(run: Path, tmp_path: Path) -> None:
    folder = draw_many(tmp_path / "in", 6)
    stopped(run, folder, folder / "results", 3)
    assert pictures(folder / "results")
    assert not (folder / "results/predictions.jsonl").exists()
    assert [path.name for path in find_images(folder)] == [f"00{index}.png" for index in range(6)]
    assert names(list(predict(run, [folder], tmp_path / "out"))) == [f"00{index}.png" for index in range(6)]


# Names


def test_names_at_the_limit_of_the_file_system(run: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    longest = "x" * 251
    images = [draw(folder / f"{longest}.{suffix}", index) for index, suffix in enumerate(("bmp", "jpg", "png", "tif"))]
    found = list(predict(run, [folder], out))
    assert [result.path for result in found] == images
    assert all(result.error is None for result in found)
    files = [file for result in found for file in (result.map, result.overlay)]
    assert len(set(files)) == 8
    assert all(file is not None and file.is_file() and len(file.name) <= 255 for file in files)
    assert found[0].map == out / "maps" / f"{longest}.png"
