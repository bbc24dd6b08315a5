"""The engine, with a stand-in for the jobs; real jobs are in the other files."""

import itertools
import json
import os
from pathlib import Path
from unittest import mock

import pytest
import torch

from metalad.pipelines.benchmark import doing
from metalad.pipelines.benchmark.declaration import Configuration, Grid, Suite
from metalad.pipelines.benchmark.job import Failure, Job
from metalad.pipelines.benchmark.machine import commit, machine, peak_memory, reset_peak_memory
from metalad.pipelines.benchmark.rows import Row, append_row, read_rows
from metalad.pipelines.benchmark.run import Outcome, benchmark, known_rows
from metalad.runtime.errors import ConfigError, RunError
from tests.pipelines.benchmark.material import SUITE, put_category, row_of


def stand_in(failing: str = "") -> mock.Mock:
    """Jobs that leave a work folder and succeed, but for one."""

    def attempt(job: Job, *, progress: bool) -> Row | Failure:
        assert not progress
        Path(job.work).mkdir(parents=True)
        return Failure("it broke") if job.cell.name == failing else row_of(job.cell)

    return mock.Mock(side_effect=attempt)


def run(tmp_path: Path, attempt: mock.Mock, **keywords: object) -> Outcome:
    if not (tmp_path / "data").exists():
        put_category(tmp_path / "data" / "cookie")
    with mock.patch.object(doing, "attempt", attempt):
        return benchmark(SUITE, tmp_path / "data", out=tmp_path / "out", **keywords)  # type: ignore[arg-type]


def test_every_cell_is_done_once(tmp_path: Path) -> None:
    attempt = stand_in()
    first = run(tmp_path, attempt, only=["*:one:*"])
    assert [row.name for row in first.done] == ["cookie:one:0", "cookie:one:1"]
    second = run(tmp_path, attempt)
    assert [row.name for row in second.done] == ["cookie:two:0", "cookie:two:1"]
    assert [cell.name for cell in second.done_before] == ["cookie:one:0", "cookie:one:1"]
    assert run(tmp_path, attempt).done == ()
    assert attempt.call_count == 4
    assert [row.key for row in read_rows(second.results)] == [cell.key for cell in SUITE.cells()]
    assert not list((tmp_path / "out" / "runs" / "trial").iterdir())


def test_a_failed_cell_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    outcome = run(tmp_path, stand_in("cookie:one:1"))
    assert [(cell.name, reason) for cell, reason in outcome.failed] == [("cookie:one:1", "it broke")]
    assert len(outcome.done) == 3
    # What it left stays, to be looked at and gone on with.
    assert [path.name for path in (tmp_path / "out" / "runs" / "trial").iterdir()] == [outcome.failed[0][0].key]
    (tmp_path / "out" / "runs" / "trial" / outcome.failed[0][0].key).rmdir()
    assert [row.name for row in run(tmp_path, stand_in()).done] == ["cookie:one:1"]


def test_a_row_of_the_same_cell_in_another_file_counts(tmp_path: Path) -> None:
    append_row(tmp_path / "out" / "elsewhere.jsonl", row_of(SUITE.cells()[1], suite="elsewhere"))
    outcome = run(tmp_path, stand_in())
    assert [cell.name for cell in outcome.done_before] == ["cookie:one:1"]
    assert len(outcome.done) == 3
    assert set(known_rows(tmp_path / "out", SUITE)) == {cell.key for cell in SUITE.cells()}


def test_what_a_kill_left_of_a_finished_cell_is_cleared(tmp_path: Path) -> None:
    attempt = stand_in()
    run(tmp_path, attempt)
    left = tmp_path / "out" / "runs" / "trial" / SUITE.cells()[0].key
    left.mkdir()
    run(tmp_path, attempt)
    assert not left.exists()


def test_a_row_holds_some_fifty_losses_and_the_kept_epoch() -> None:
    def lines(count: int, stage: str) -> list[dict[str, object]]:
        return [
            {"epoch": n, "training_loss": n / 2, "validation_loss": abs(n - 7.0), "stage": stage, "seconds": n}
            for n in range(1, count + 1)
        ]

    history = lines(3, "teacher") + lines(1000, "train")
    with mock.patch.object(doing, "_history", return_value=history):
        best = doing._epochs(Path(), {"teacher": {"keep": "best"}, "train": {"keep": "best"}})
        last = doing._epochs(Path(), {"teacher": {"keep": "best"}, "train": {"keep": "last"}})
    assert (best["epochs"], best["kept_epoch"], best["validation_loss"]) == (1003, 7, 0.0)
    assert (last["kept_epoch"], last["validation_loss"]) == (1000, 993.0)
    epochs = [epoch for epoch, _, _ in best["losses"]]
    assert 45 <= len(epochs) <= 55
    assert epochs[-1] == 1000
    assert len({b - a for a, b in itertools.pairwise(epochs[:-1])}) == 1


def test_kept_work_stays(tmp_path: Path) -> None:
    run(tmp_path, stand_in(), keep=True)
    assert len(list((tmp_path / "out" / "runs" / "trial").iterdir())) == 4


def test_an_absent_category_is_said_and_no_failure(tmp_path: Path) -> None:
    suite = Suite("both", "", (Grid((Configuration("metal"),), ("cookie", "unicorn")),))
    put_category(tmp_path / "data" / "cookie")
    with mock.patch.object(doing, "attempt", stand_in()):
        outcome = benchmark(suite, tmp_path / "data", out=tmp_path / "out")
    assert [row.name for row in outcome.done] == ["cookie:metal:0"]
    assert [(cell.name, place.reason) for cell, place in outcome.absent] == [
        ("unicorn:metal:0", "no folder of this name")
    ]
    assert outcome.failed == ()
    assert json.loads(json.dumps(outcome.to_json()))["absent"][0]["name"] == "unicorn:metal:0"


def test_images_are_asked_for_only_where_they_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite trial needs images \\(cookie\\); give --data"):
        benchmark(SUITE, out=tmp_path)
    outcome = benchmark("table-6", out=tmp_path, only=["*metal, *"], threads=1, device="cpu")
    assert [row.parameters for row in outcome.done] == [17_859_840, 26_392_192]
    assert all((row.metrics, row.data) == ({}, {}) for row in outcome.done)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [({"workers": 0}, "workers is 0"), ({"threads": 0}, "threads is 0"), ({"memory": -1.0}, "memory")],
)
def test_numbers_that_cannot_be_are_refused(keywords: dict[str, float], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        benchmark(SUITE, tmp_path, out=tmp_path, **keywords)  # type: ignore[arg-type]


# A job


def job_of(tmp_path: Path, **keywords: object) -> Job:
    values = {"data": str(tmp_path / "cookie"), "work": str(tmp_path / "work"), "threads": 1, "device": "cpu"}
    return Job(suite="trial", cell=SUITE.cells()[2], **{**values, **keywords})  # type: ignore[arg-type]


def test_a_job_survives_json(tmp_path: Path) -> None:
    job = job_of(tmp_path, config={"depth": 2}, commit="abc")
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_mistakes_are_one_line_and_bugs_leave_their_traceback(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with mock.patch.object(doing, "train", side_effect=RunError("no room")):
        put_category(tmp_path / "cookie")
        assert doing.attempt(job_of(tmp_path, threads=before + 1)) == Failure("no room")
    with mock.patch.object(doing, "train", side_effect=KeyError("a\nb")):
        failure = doing.attempt(job_of(tmp_path))
    assert failure == Failure(f"KeyError: 'a\\nb'; see {tmp_path / 'work' / 'error.txt'}")
    assert "Traceback" in (tmp_path / "work" / "error.txt").read_text(encoding="utf-8")
    assert torch.get_num_threads() == before


def test_work_begun_otherwise_is_begun_anew(tmp_path: Path) -> None:
    log = doing._WorkLog(tmp_path / "work", {"threads": 1})
    (tmp_path / "work" / "half-done").touch()
    assert (log.sessions, doing._WorkLog(tmp_path / "work", {"threads": 1}).sessions) == (1, 2)
    assert (tmp_path / "work" / "half-done").exists()
    assert doing._WorkLog(tmp_path / "work", {"threads": 2}).sessions == 1
    assert not (tmp_path / "work" / "half-done").exists()


def test_training_is_timed_once_over_all_sessions(tmp_path: Path) -> None:
    first = doing._WorkLog(tmp_path / "work", {})
    (tmp_path / "work" / "run").mkdir()
    (tmp_path / "work" / "run" / "history.jsonl").write_text('{"seconds": 50.0}\n', encoding="utf-8")
    with first.training():
        pass
    assert first.seconds == 50.0
    second = doing._WorkLog(tmp_path / "work", {})
    with second.training():
        pass
    assert (second.seconds, second.sessions) == (50.0, 2)


# The machine


def test_the_machine_has_a_name() -> None:
    found = machine(None)
    assert found["cpu"]
    assert found["cores"] >= 1


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset on this system")
def test_memory_has_a_peak() -> None:
    reset_peak_memory()
    before = peak_memory()
    held = bytearray(b"x" * 50_000_000)
    after = peak_memory()
    del held
    assert before is not None
    assert after is not None
    assert after > before + 40_000_000


def test_the_commit_is_this_checkouts() -> None:
    found = commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40
    with mock.patch("subprocess.run", side_effect=FileNotFoundError):
        assert commit() is None
