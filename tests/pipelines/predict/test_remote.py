"""Inference in other processes gives the results, files and errors of inference in this process."""

import json
import os
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from metalad.pipelines.predict import predict, remote
from metalad.pipelines.predict.shards import answer
from metalad.results.prediction import SavedPrediction
from metalad.results.regions import Region
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
    """Replace worker processes: of four waiting tasks, a random one is processed here."""
    assert (function, fresh) == ("metalad.pipelines.predict.shards:answer", False)
    rng = random.Random(workers)
    waiting: list[tuple[int, Task]] = []
    for pair in enumerate(tasks):
        waiting.append(pair)
        if len(waiting) == 4:
            place, task = waiting.pop(rng.randrange(4))
            yield place, answer(json.loads(json.dumps(task)))
    for place, task in rng.sample(waiting, len(waiting)):
        yield place, answer(json.loads(json.dumps(task)))


def predicted(run: Path, folder: Path, **keywords: Any) -> tuple[list[SavedPrediction], BaseException | None]:
    keywords.setdefault("overwrite", "resume" not in keywords)
    results, found = predict(run, [folder], Path("out"), batch_size=2, **keywords), []
    try:
        for result in results:
            found.append(result)
    except MetaladError as error:
        return found, error
    return found, None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A relative path of a folder of images, some of them unreadable."""
    monkeypatch.chdir(tmp_path)
    draw_many(tmp_path / "in" / "deep", 21)
    for name in ("000.png", "013.png"):
        (tmp_path / "in" / "deep" / name).write_text("no image")
    draw(tmp_path / "in" / "deep" / "005.jpg", 5)
    return Path("in")


def test_worker_processes_write_the_same_files(run: Path, folder: Path) -> None:
    here, here_files = predicted(run, folder), contents(Path("out"))
    there = predicted(run, folder, workers=2)
    assert there == here
    assert contents(Path("out")) == here_files
    assert len(here[0]) == 22
    assert {result.is_anomalous for result in here[0]} == {True, False, None}


@pytest.mark.filterwarnings("ignore")
def test_ray_writes_the_same_files(run: Path, folder: Path) -> None:
    pytest.importorskip("ray", reason='Ray is not installed; pip install "metalad[ray]"', exc_type=ImportError)
    here, here_files = predicted(run, folder), contents(Path("out"))
    assert predicted(run, folder, ray="local", workers=2) == here
    assert contents(Path("out")) == here_files


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("strict", [False, True])
def test_results_are_in_order_for_any_order_of_shards(run: Path, folder: Path, workers: int, strict: bool) -> None:
    (folder / "deep" / "000.png").unlink()
    here, here_files = predicted(run, folder, strict=strict), contents(Path("out"))
    with mock.patch.object(remote, "in_processes", shuffled):
        there = predicted(run, folder, strict=strict, workers=workers)
    assert there[0] == here[0]
    assert repr(there[1]) == repr(here[1])
    assert isinstance(there[1], ImageError) == strict
    if not strict:
        assert contents(Path("out")) == here_files


def test_an_error_in_a_worker_is_raised_here(run: Path, folder: Path) -> None:
    (Path("out") / "maps").mkdir(parents=True)
    (Path("out") / "maps" / "deep").touch()
    with mock.patch.object(remote, "in_processes", shuffled):
        found, error = predicted(run, folder, workers=1)
    assert isinstance(error, RunError)
    assert "a file exists where a folder is needed" in str(error)
    assert len(found) == 1  # 000.png cannot be read and has no map


def test_a_bug_in_a_worker_keeps_its_traceback(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalad.pipelines.predict.shards.infer_stream", lambda *_: 1 / 0)
    with (
        mock.patch.object(remote, "in_processes", shuffled),
        pytest.raises(RuntimeError, match="ZeroDivisionError"),
    ):
        list(predict(run, [folder], Path("out"), workers=1))


def test_a_killed_worker_is_one_line_and_no_other_shard_is_started(run: Path, folder: Path) -> None:
    taken = 0

    def killed(_function: str, tasks: Iterator[Task], _workers: int, **_: object) -> Answers:
        nonlocal taken
        for place, task in enumerate(tasks):
            taken += 1
            yield place, TaskFailure("its process ended with code -9") if place == 2 else answer(task)

    with mock.patch.object(remote, "in_processes", killed):
        found, error = predicted(run, folder, workers=2)
        assert str(error).startswith("predict stopped: its process ended with code -9; continue with --resume")
        assert len(found) == 4
        assert taken == 3
    with mock.patch.object(remote, "in_processes", shuffled):
        again, error = predicted(run, folder, workers=2, resume=True)
    assert error is None
    assert again == predicted(run, folder)[0]


def test_a_model_that_was_replaced_during_the_prediction_is_an_error(run: Path, folder: Path) -> None:
    def replaced(_function: str, tasks: Iterator[Task], _workers: int, **_: object) -> Answers:
        for place, task in enumerate(tasks):
            yield place, answer({**task, "plan": {**task["plan"], "model": "another"}})

    with mock.patch.object(remote, "in_processes", replaced):
        _, error = predicted(run, folder, workers=2)
    assert "another model replaced it during predict; start again without --resume" in str(error)


def test_impossible_arguments_are_errors_of_the_call(run: Path, folder: Path) -> None:
    for keywords, message in [
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"workers": 2, "device": "tpu"}, "there is no device 'tpu'"),
        ({"ray": "local", "device": "cuda:1"}, "which assigns the GPUs"),
    ]:
        with pytest.raises(ConfigError, match=message):
            predict(run, [folder], Path("out"), **keywords)  # type: ignore[arg-type]
    with mock.patch.dict(sys.modules, {"ray": None}), pytest.raises(ConfigError, match=r'pip install "metalad\[ray\]"'):
        list(predict(run, [folder], Path("out"), ray="local"))


@pytest.mark.parametrize(
    "result",
    [
        SavedPrediction(Path("a"), 0.1, 0.5, False, (), Path("m"), None, size=(30, 40)),
        SavedPrediction(
            Path("a"), 0.7, 0.5, True, (Region((1, 2, 3, 4), 5, 0.7, ((1.5, 2.0), (3.0, 4.0))),), None, Path("o")
        ),
        SavedPrediction(Path("a"), None, 0.5, None, (), None, None, "truncated"),
    ],
)
def test_a_result_is_read_back_from_json(result: SavedPrediction) -> None:
    """JSON has no threshold of an unreadable image; the caller gives it."""
    assert SavedPrediction.from_dict(json.loads(json.dumps(result.to_dict())), 0.5) == result
