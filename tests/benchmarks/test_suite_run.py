"""Running a suite, with mocked jobs; real jobs are in the other files."""

import json
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.harness.declaration import Grid, Suite
from benchmarks.harness.suite_run import SuiteOutcome, known_rows, run_suite
from metalad.pipelines.benchmark import execution
from metalad.pipelines.benchmark.cells import Configuration
from metalad.pipelines.benchmark.job import Failure, Job
from metalad.pipelines.benchmark.rows import ResultRow, append_row, read_rows
from metalad.runtime.errors import ConfigError
from tests.benchmarks.material import SUITE
from tests.pipelines.benchmark.material import put_category, row_of


def mocked_run(failing: str = "") -> mock.Mock:
    """Jobs that leave a work folder and succeed, except for one."""

    def run_job(job: Job, *, progress: bool) -> ResultRow | Failure:
        assert not progress
        Path(job.work).mkdir(parents=True)
        return Failure("it broke") if job.cell.name == failing else row_of(job.cell)

    return mock.Mock(side_effect=run_job)


def run(tmp_path: Path, run_job: mock.Mock, **keywords: object) -> SuiteOutcome:
    if not (tmp_path / "data").exists():
        put_category(tmp_path / "data" / "cookie")
    with mock.patch.object(execution, "run_job", run_job):
        return run_suite(SUITE, tmp_path / "data", out=tmp_path / "out", **keywords)  # type: ignore[arg-type]


def test_every_cell_runs_once(tmp_path: Path) -> None:
    run_job = mocked_run()
    first = run(tmp_path, run_job, only=["*:one:*"])
    assert [row.name for row in first.done] == ["cookie:one:0", "cookie:one:1"]
    second = run(tmp_path, run_job)
    assert [row.name for row in second.done] == ["cookie:two:0", "cookie:two:1"]
    assert [cell.name for cell in second.done_before] == ["cookie:one:0", "cookie:one:1"]
    assert run(tmp_path, run_job).done == ()
    assert run_job.call_count == 4
    assert [row.key for row in read_rows(second.results)] == [cell.key for cell in SUITE.cells()]
    assert not list((tmp_path / "out" / "runs" / "trial").iterdir())


def test_after_a_failed_cell_the_others_run_and_it_is_tried_again(tmp_path: Path) -> None:
    outcome = run(tmp_path, mocked_run("cookie:one:1"))
    assert [(cell.name, reason) for cell, reason in outcome.failed] == [("cookie:one:1", "it broke")]
    assert len(outcome.done) == 3
    # The work folder of a failed cell is kept for inspection and to resume.
    assert [path.name for path in (tmp_path / "out" / "runs" / "trial").iterdir()] == [outcome.failed[0][0].key]
    (tmp_path / "out" / "runs" / "trial" / outcome.failed[0][0].key).rmdir()
    assert [row.name for row in run(tmp_path, mocked_run()).done] == ["cookie:one:1"]


def test_a_row_of_the_same_cell_in_another_file_counts(tmp_path: Path) -> None:
    append_row(tmp_path / "out" / "elsewhere.jsonl", row_of(SUITE.cells()[1], suite="elsewhere"))
    outcome = run(tmp_path, mocked_run())
    assert [cell.name for cell in outcome.done_before] == ["cookie:one:1"]
    assert len(outcome.done) == 3
    assert set(known_rows(tmp_path / "out", SUITE)) == {cell.key for cell in SUITE.cells()}


def test_the_work_folder_of_a_finished_cell_is_deleted(tmp_path: Path) -> None:
    run_job = mocked_run()
    run(tmp_path, run_job)
    left = tmp_path / "out" / "runs" / "trial" / SUITE.cells()[0].key
    left.mkdir()
    run(tmp_path, run_job)
    assert not left.exists()


def test_work_folders_are_kept_on_request(tmp_path: Path) -> None:
    run(tmp_path, mocked_run(), keep=True)
    assert len(list((tmp_path / "out" / "runs" / "trial").iterdir())) == 4


def test_an_absent_category_is_listed_and_is_not_a_failure(tmp_path: Path) -> None:
    suite = Suite("both", "", (Grid((Configuration("metal", "metal"),), ("cookie", "unicorn")),))
    put_category(tmp_path / "data" / "cookie")
    with mock.patch.object(execution, "run_job", mocked_run()):
        outcome = run_suite(suite, tmp_path / "data", out=tmp_path / "out")
    assert [row.name for row in outcome.done] == ["cookie:metal:0"]
    assert [(cell.name, folder.reason) for cell, folder in outcome.absent] == [
        ("unicorn:metal:0", "no folder of this name")
    ]
    assert outcome.failed == ()
    assert json.loads(json.dumps(outcome.to_json()))["absent"][0]["name"] == "unicorn:metal:0"


def test_data_is_required_only_if_a_cell_needs_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite trial needs images \\(cookie\\); give --data"):
        run_suite(SUITE, out=tmp_path)
    outcome = run_suite("table-6", out=tmp_path, only=["*metal, *"], threads=1, device="cpu")
    assert [row.parameters for row in outcome.done] == [17_859_840, 26_392_192]
    assert all((row.metrics, row.data) == ({}, {}) for row in outcome.done)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"workers": 0}, "workers is 0"), ({"threads": 0}, "threads is 0"), ({"memory": -1.0}, "memory")],
)
def test_invalid_numbers_are_errors(keywords: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_suite(SUITE, tmp_path, out=tmp_path, **keywords)  # type: ignore[arg-type]
