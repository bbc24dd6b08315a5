"""Running one job, and the machine that it runs on."""

import itertools
import json
import mmap
import os
from pathlib import Path
from unittest import mock

import pytest
import torch

from metalad.pipelines.benchmark import execution
from metalad.pipelines.benchmark.job import Failure, Job
from metalad.pipelines.benchmark.machine import commit, machine, peak_memory, reset_peak_memory
from metalad.runtime.errors import RunError
from tests.pipelines.benchmark.material import CELLS, put_category


def test_a_row_contains_about_fifty_losses_and_the_selected_epoch() -> None:
    def lines(count: int, stage: str) -> list[dict[str, object]]:
        return [
            {"epoch": n, "training_loss": n / 2, "validation_loss": abs(n - 7.0), "stage": stage, "seconds": n}
            for n in range(1, count + 1)
        ]

    history = lines(3, "teacher") + lines(1000, "train")
    with mock.patch.object(execution, "_history", return_value=history):
        best = execution._epochs(Path(), {"teacher": {"keep": "best"}, "train": {"keep": "best"}})
        last = execution._epochs(Path(), {"teacher": {"keep": "best"}, "train": {"keep": "last"}})
    assert (best["epochs"], best["kept_epoch"], best["validation_loss"]) == (1003, 7, 0.0)
    assert (last["kept_epoch"], last["validation_loss"]) == (1000, 993.0)
    epochs = [epoch for epoch, _, _ in best["losses"]]
    assert 45 <= len(epochs) <= 55
    assert epochs[-1] == 1000
    assert len({b - a for a, b in itertools.pairwise(epochs[:-1])}) == 1


def job_of(tmp_path: Path, **keywords: object) -> Job:
    values = {"data": str(tmp_path / "cookie"), "work": str(tmp_path / "work"), "threads": 1, "device": "cpu"}
    return Job(suite="trial", cell=CELLS[2], **{**values, **keywords})  # type: ignore[arg-type]


def test_a_job_survives_json(tmp_path: Path) -> None:
    job = job_of(tmp_path, config={"depth": 2}, commit="abc")
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_errors_are_one_line_and_bugs_leave_a_traceback(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with mock.patch.object(execution, "train", side_effect=RunError("no room")):
        put_category(tmp_path / "cookie")
        assert execution.run_job(job_of(tmp_path, threads=before + 1)) == Failure("no room")
    with mock.patch.object(execution, "train", side_effect=KeyError("a\nb")):
        failure = execution.run_job(job_of(tmp_path))
    assert failure == Failure(f"KeyError: 'a\\nb'; see {tmp_path / 'work' / 'error.txt'}")
    assert "Traceback" in (tmp_path / "work" / "error.txt").read_text(encoding="utf-8")
    assert torch.get_num_threads() == before


def test_a_work_folder_with_other_inputs_is_emptied(tmp_path: Path) -> None:
    log = execution._WorkLog(tmp_path / "work", {"threads": 1})
    (tmp_path / "work" / "half-done").touch()
    assert (log.sessions, execution._WorkLog(tmp_path / "work", {"threads": 1}).sessions) == (1, 2)
    assert (tmp_path / "work" / "half-done").exists()
    assert execution._WorkLog(tmp_path / "work", {"threads": 2}).sessions == 1
    assert not (tmp_path / "work" / "half-done").exists()


def test_training_time_is_that_of_the_session_that_completed_it(tmp_path: Path) -> None:
    first = execution._WorkLog(tmp_path / "work", {})
    (tmp_path / "work" / "run").mkdir()
    (tmp_path / "work" / "run" / "history.jsonl").write_text('{"seconds": 50.0}\n', encoding="utf-8")
    with first.training():
        pass
    assert first.seconds == 50.0
    second = execution._WorkLog(tmp_path / "work", {})
    with second.training():
        pass
    assert (second.seconds, second.sessions) == (50.0, 2)


# The machine


def test_the_machine_has_a_processor_name() -> None:
    found = machine(None)
    assert found["cpu"]
    assert found["cores"] >= 1


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset on this system")
def test_peak_memory_increases_with_an_allocation() -> None:
    reset_peak_memory()
    before = peak_memory()
    with mmap.mmap(-1, 50_000_000) as held:  # not from memory that the allocator kept
        held.write(b"x" * len(held))
        after = peak_memory()
    assert before is not None
    assert after is not None
    assert after > before + 40_000_000


def test_the_commit_is_a_hash_or_unknown() -> None:
    found = commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40
    with mock.patch("subprocess.run", side_effect=FileNotFoundError):
        assert commit() is None
