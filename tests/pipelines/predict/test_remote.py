"""Judging in other processes: the results, the files and the errors are those of one process."""

import dataclasses
import json
import os
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from metalad.pipelines.predict import PredictedImage, elsewhere, predict
from metalad.pipelines.predict.shards import answer
from metalad.runtime.errors import ConfigError, ImageError, MetaladError, RunError
from metalad.runtime.tasks import Answers, Task, TaskFailure
from tests.noise import draw, draw_many, files_in, noise_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in files_in(out)}


def shuffled(function: str, tasks: Iterable[Task], workers: int, *, fresh: bool) -> Answers:
    """Stand in for processes: four tasks are taken at a time, and answered here in any order."""
    assert (function, fresh) == ("metalad.pipelines.predict.shards:answer", False)
    mixed = random.Random(workers)
    waiting: list[tuple[int, Task]] = []
    for pair in enumerate(tasks):
        waiting.append(pair)
        if len(waiting) == 4:
            place, task = waiting.pop(mixed.randrange(4))
            yield place, answer(json.loads(json.dumps(task)))
    for place, task in mixed.sample(waiting, len(waiting)):
        yield place, answer(json.loads(json.dumps(task)))


def everyone(run: Path, folder: Path, **keywords: Any) -> tuple[list[PredictedImage], BaseException | None]:
    results, found = predict(run, [folder], Path("out"), batch_size=2, **keywords), []
    try:
        for result in results:
            found.append(result)
    except MetaladError as error:
        return found, error
    return found, None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images with unreadable ones among them, in a folder told by a relative path."""
    monkeypatch.chdir(tmp_path)
    draw_many(tmp_path / "in" / "deep", 21)
    for name in ("000.png", "013.png"):
        (tmp_path / "in" / "deep" / name).write_text("no image")
    draw(tmp_path / "in" / "deep" / "005.jpg", 5)
    return Path("in")


def test_processes_end_in_the_same_files(run: Path, folder: Path) -> None:
    here, here_files = everyone(run, folder), contents(Path("out"))
    there = everyone(run, folder, workers=2)
    assert there == here
    assert contents(Path("out")) == here_files
    assert len(here[0]) == 22
    assert {result.abnormal for result in here[0]} == {True, False, None}


@pytest.mark.filterwarnings("ignore")
def test_ray_ends_in_the_same_files(run: Path, folder: Path) -> None:
    pytest.importorskip("ray", reason='Ray is not installed; pip install "metalad[ray]"', exc_type=ImportError)
    here, here_files = everyone(run, folder), contents(Path("out"))
    assert everyone(run, folder, ray="local", workers=2) == here
    assert contents(Path("out")) == here_files


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("strict", [False, True])
def test_whatever_shard_is_first_the_order_is_kept(run: Path, folder: Path, workers: int, strict: bool) -> None:
    (folder / "deep" / "000.png").unlink()
    here, here_files = everyone(run, folder, strict=strict), contents(Path("out"))
    with mock.patch.object(elsewhere, "in_processes", shuffled):
        there = everyone(run, folder, strict=strict, workers=workers)
    assert there[0] == here[0]
    assert repr(there[1]) == repr(here[1])
    assert isinstance(there[1], ImageError) == strict
    if not strict:
        assert contents(Path("out")) == here_files


def test_an_error_elsewhere_is_the_error_here(run: Path, folder: Path) -> None:
    (Path("out") / "maps").mkdir(parents=True)
    (Path("out") / "maps" / "deep").touch()
    with mock.patch.object(elsewhere, "in_processes", shuffled):
        found, error = everyone(run, folder, workers=1)
    assert isinstance(error, RunError)
    assert "a file exists where a folder is needed" in str(error)
    assert len(found) == 1  # 000.png cannot be read and has no map


def test_a_bug_elsewhere_keeps_its_traceback(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalad.pipelines.predict.shards.predict_sources", lambda *_: 1 / 0)
    with (
        mock.patch.object(elsewhere, "in_processes", shuffled),
        pytest.raises(RuntimeError, match="ZeroDivisionError"),
    ):
        list(predict(run, [folder], Path("out"), workers=1))


def test_a_killed_process_is_one_line_and_nothing_is_begun_after_it(run: Path, folder: Path) -> None:
    taken = 0

    def killed(_function: str, tasks: Iterator[Task], _workers: int, **_: object) -> Answers:
        nonlocal taken
        for place, task in enumerate(tasks):
            taken += 1
            yield place, TaskFailure("its process ended with code -9") if place == 2 else answer(task)

    with mock.patch.object(elsewhere, "in_processes", killed):
        found, error = everyone(run, folder, workers=2)
        assert str(error).startswith("judging stopped: its process ended with code -9; go on by --resume")
        assert len(found) == 4
        assert taken == 3
    with mock.patch.object(elsewhere, "in_processes", shuffled):
        again, error = everyone(run, folder, workers=2, resume=True)
    assert error is None
    assert again == everyone(run, folder)[0]


def test_a_model_that_is_replaced_meanwhile_is_refused(run: Path, folder: Path) -> None:
    def replaced(_function: str, tasks: Iterator[Task], _workers: int, **_: object) -> Answers:
        for place, task in enumerate(tasks):
            yield place, answer({**task, "plan": {**task["plan"], "model": "another"}})

    with mock.patch.object(elsewhere, "in_processes", replaced):
        _, error = everyone(run, folder, workers=2)
    assert "replaced by another" in str(error)


def test_mistakes_are_told_at_the_call(run: Path, folder: Path) -> None:
    for keywords, words in [
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"workers": 2, "device": "tpu"}, "there is no device 'tpu'"),
        ({"ray": "local", "device": "cuda:1"}, "which assigns the GPUs"),
    ]:
        with pytest.raises(ConfigError, match=words):
            predict(run, [folder], Path("out"), **keywords)  # type: ignore[arg-type]
    with mock.patch.dict(sys.modules, {"ray": None}), pytest.raises(ConfigError, match=r'pip install "metalad\[ray\]"'):
        list(predict(run, [folder], Path("out"), ray="local"))


def test_results_are_values() -> None:
    """What JSON loses, the threshold of what cannot be read, is given back."""
    for result in (
        PredictedImage(Path("a"), 0.1, 0.5, False, Path("m"), None),
        PredictedImage(Path("a"), None, 0.5, None, None, None, "cut short"),
    ):
        assert PredictedImage.from_json(json.loads(json.dumps(result.to_json())), 0.5) == dataclasses.replace(result)
