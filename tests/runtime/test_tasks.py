"""Tasks in other processes: answers, order, what is killed, what is stopped, and how far ahead tasks are taken."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from metalad.runtime.errors import ConfigError
from metalad.runtime.tasks import LOCAL, WORKER, Lost, Needs, Task, gpus_on_ray, in_processes, on_ray

EVERYTHING = "tests.runtime.test_tasks:everything"


def everything(task: Task) -> dict[str, Any]:
    """What the processes do here: tell of themselves, print, die, or write for a long time."""
    if "die" in task:
        os.kill(os.getpid(), 9)
    if "slow" in task:
        file = Path(task["slow"])
        try:
            file.write_text("half")
            time.sleep(60)
        finally:
            file.write_text("whole")
    print("this is no answer")
    return {"twice": 2 * task["number"], "process": os.getpid(), "place": os.environ[WORKER]}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_answers_are_those_of_their_tasks_and_processes_go_on() -> None:
    answers = dict(in_processes(EVERYTHING, ({"number": number} for number in range(8)), 2, fresh=False))
    found = [answers[number] for number in range(8)]
    assert [answer["twice"] for answer in found if isinstance(answer, dict)] == list(range(0, 16, 2))
    places = {(answer["process"], answer["place"]) for answer in found if isinstance(answer, dict)}
    assert len(places) <= 2
    assert {place for _, place in places} <= {"0", "1"}
    assert all(gone(process) for process, _ in places)


def test_fresh_processes_do_one_task_each() -> None:
    answers = dict(in_processes(EVERYTHING, [{"number": 1}, {"number": 2}], 1, fresh=True))
    assert len({answer["process"] for answer in answers.values() if isinstance(answer, dict)}) == 2


@pytest.mark.parametrize("fresh", [True, False])
def test_one_that_is_killed_harms_no_other(fresh: bool) -> None:
    answers = dict(in_processes(EVERYTHING, [{"die": True}, {"number": 3}], 1, fresh=fresh))
    assert answers[0] == Lost("its process ended with code -9; it was killed, perhaps for memory")
    assert isinstance(answers[1], dict)
    assert answers[1]["twice"] == 6


def test_closing_lets_a_process_end_what_it_is_writing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    answers = in_processes(EVERYTHING, [{"number": 0}, {"slow": str(file)}], 2, fresh=False)
    _, first = next(answers)
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text() == "half"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    answers.close()
    assert file.read_text() == "whole"
    assert isinstance(first, dict)
    assert gone(first["process"])


def test_tasks_are_taken_as_they_are_needed() -> None:
    taken = 0

    def endless() -> Iterator[Task]:
        nonlocal taken
        while True:
            taken += 1
            yield {"number": taken}

    with contextlib.closing(in_processes(EVERYTHING, endless(), 2, fresh=False)) as answers:
        for _ in range(3):
            next(answers)
    assert taken <= 3 + 2 * 2


def test_a_gpu_by_its_number_means_nothing_on_ray() -> None:
    assert [gpus_on_ray(device) for device in ("cpu", "cuda", "auto")] == [0.0, 1.0, None]
    for device in ("cuda:1", "tpu"):
        with pytest.raises(ConfigError, match="gives each task a GPU"):
            gpus_on_ray(device)


def test_a_ray_that_does_not_start_is_one_line() -> None:
    ray = mock.Mock()
    ray.init.side_effect = Exception("The current node timed out during startup")  # what Ray raises, of no kind
    with (
        mock.patch.dict(sys.modules, {"ray": ray}),
        pytest.raises(ConfigError, match="reach Ray at local: The current"),
    ):
        next(on_ray(EVERYTHING, [], LOCAL, 1, Needs(), fresh=False))


@pytest.mark.filterwarnings("ignore")
def test_ray_answers_and_refuses_what_no_node_has() -> None:
    pytest.importorskip("ray", reason='Ray is not installed; pip install "metalad[ray]"', exc_type=ImportError)
    tasks: list[Task] = [{"number": 1}, {"number": 2}, {"die": True}]
    with pytest.raises(ConfigError, match="no node of the Ray cluster has a GPU"):
        next(on_ray("tests.runtime.test_tasks:doubled", tasks, LOCAL, 1, Needs(1, 0.1, 1.0), fresh=False))
    answers = dict(on_ray("tests.runtime.test_tasks:doubled", tasks, LOCAL, 2, Needs(1, 0.1, 0.0), fresh=False))
    assert [answers[0], answers[1]] == [{"twice": 2}, {"twice": 4}]
    assert isinstance(answers[2], Lost)


def doubled(task: Task) -> dict[str, Any]:
    """What is done on Ray."""
    if "die" in task:
        os.kill(os.getpid(), 9)
    return {"twice": 2 * task["number"]}
