"""Tasks in other processes: answers, killed and interrupted processes, and lazy consumption of tasks."""

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
from metalad.runtime.tasks import LOCAL, WORKER, Task, TaskFailure, TaskResources, gpus_on_ray, in_processes, on_ray

FUNCTION = "tests.runtime.test_tasks:run_task"


def run_task(task: Task) -> dict[str, Any]:
    """Return facts about the process, print, kill the process, or write a file slowly, as the task requires."""
    if "die" in task:
        os.kill(os.getpid(), 9)
    if "slow" in task:
        file = Path(task["slow"])
        try:
            file.write_text("half")
            time.sleep(60)
        finally:
            file.write_text("complete")
    print("not an answer")
    return {"twice": 2 * task["number"], "process": os.getpid(), "worker": os.environ[WORKER]}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


def has_exited(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_answers_match_tasks_and_processes_are_reused() -> None:
    answers = dict(in_processes(FUNCTION, ({"number": number} for number in range(8)), 2, fresh=False))
    ordered = [answers[number] for number in range(8)]
    assert [answer["twice"] for answer in ordered if isinstance(answer, dict)] == list(range(0, 16, 2))
    workers = {(answer["process"], answer["worker"]) for answer in ordered if isinstance(answer, dict)}
    assert len(workers) <= 2
    assert {worker for _, worker in workers} <= {"0", "1"}
    assert all(has_exited(process) for process, _ in workers)


def test_fresh_starts_a_process_per_task() -> None:
    answers = dict(in_processes(FUNCTION, [{"number": 1}, {"number": 2}], 1, fresh=True))
    assert len({answer["process"] for answer in answers.values() if isinstance(answer, dict)}) == 2


@pytest.mark.parametrize("fresh", [True, False])
def test_killed_process_fails_only_its_task(fresh: bool) -> None:
    answers = dict(in_processes(FUNCTION, [{"die": True}, {"number": 3}], 1, fresh=fresh))
    assert answers[0] == TaskFailure("its process ended with code -9; it was killed, perhaps because memory ran out")
    assert isinstance(answers[1], dict)
    assert answers[1]["twice"] == 6


def test_closing_lets_a_process_finish_its_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    answers = in_processes(FUNCTION, [{"number": 0}, {"slow": str(file)}], 2, fresh=False)
    _, first = next(answers)
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text() == "half"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    answers.close()
    assert file.read_text() == "complete"
    assert isinstance(first, dict)
    assert has_exited(first["process"])


def test_tasks_are_consumed_lazily() -> None:
    consumed = 0

    def endless() -> Iterator[Task]:
        nonlocal consumed
        while True:
            consumed += 1
            yield {"number": consumed}

    with contextlib.closing(in_processes(FUNCTION, endless(), 2, fresh=False)) as answers:
        for _ in range(3):
            next(answers)
    assert consumed <= 3 + 2 * 2


def test_ray_rejects_numbered_gpus() -> None:
    assert [gpus_on_ray(device) for device in ("cpu", "cuda", "auto")] == [0.0, 1.0, None]
    for device in ("cuda:1", "tpu"):
        with pytest.raises(ConfigError, match="Ray, which assigns the GPUs"):
            gpus_on_ray(device)


def test_ray_start_failure_raises_config_error() -> None:
    ray = mock.Mock()
    ray.init.side_effect = Exception("The current node timed out during startup")  # the plain Exception that Ray raises
    with (
        mock.patch.dict(sys.modules, {"ray": ray}),
        pytest.raises(ConfigError, match="reach Ray at local: The current"),
    ):
        next(on_ray(FUNCTION, [], LOCAL, 1, TaskResources(), fresh=False))


@pytest.mark.filterwarnings("ignore")
def test_ray_returns_answers_and_rejects_missing_resources() -> None:
    pytest.importorskip("ray", reason='Ray is not installed; pip install "metalad[ray]"', exc_type=ImportError)
    tasks: list[Task] = [{"number": 1}, {"number": 2}, {"die": True}]
    with pytest.raises(ConfigError, match="no node of the Ray cluster has a GPU"):
        next(on_ray("tests.runtime.test_tasks:doubled", tasks, LOCAL, 1, TaskResources(1, 0.1, 1.0), fresh=False))
    answers = dict(on_ray("tests.runtime.test_tasks:doubled", tasks, LOCAL, 2, TaskResources(1, 0.1, 0.0), fresh=False))
    assert [answers[0], answers[1]] == [{"twice": 2}, {"twice": 4}]
    assert isinstance(answers[2], TaskFailure)


def doubled(task: Task) -> dict[str, Any]:
    """Return twice the number, or kill the process, on Ray."""
    if "die" in task:
        os.kill(os.getpid(), 9)
    return {"twice": 2 * task["number"]}
