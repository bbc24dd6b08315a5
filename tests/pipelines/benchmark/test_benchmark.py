"""The public function, with mocked jobs first, then with real ones."""

import csv
import json
import sys
from pathlib import Path
from unittest import mock

import pytest

from metalad.data import data_hash, read_category
from metalad.methods.variation_model import VariationModelConfig
from metalad.pipelines.benchmark import BenchmarkReport, ResultRow, benchmark, execution
from metalad.pipelines.benchmark.job import Failure, Job
from metalad.pipelines.benchmark.rows import read_rows
from metalad.runtime.errors import ConfigError, RunError
from metalad.runtime.lock import exclusive_lock
from tests.pipelines.benchmark.material import put_category, row_of
from tests.tiny import tiny_category

CONFUSION = {"tp": 1, "fn": 1, "fp": 0, "tn": 2}
METRICS = ("image_auroc", "pixel_auroc", "pixel_auroc_fpr30", "pixel_aupro", "pixel_ap")
SCORING = {"model": dict.fromkeys(METRICS, 0.5), "confusion": CONFUSION}


def mocked_run(failing: str = "") -> mock.Mock:
    """Jobs that leave a work folder and succeed, except for one."""

    def run_job(job: Job, *, progress: bool) -> ResultRow | Failure:  # noqa: ARG001
        Path(job.work).mkdir(parents=True)
        if job.cell.name == failing:
            return Failure("it broke")
        category = read_category(Path(job.data or ""))
        digest = data_hash((*category.train, *category.test))
        metrics = {"calibrated": SCORING, "raw": SCORING}
        return row_of(job.cell, config=job.config, data={"all": digest}, metrics=metrics)

    return mock.Mock(side_effect=run_job)


def run(tmp_path: Path, run_job: mock.Mock, **keywords: object) -> BenchmarkReport:
    if not (tmp_path / "cookie").exists():
        put_category(tmp_path / "cookie")
    with mock.patch.object(execution, "run_job", run_job):
        methods = ["variation_model", "padim"]
        return benchmark(methods, [tmp_path / "cookie"], out=tmp_path / "out", seeds=2, **keywords)  # type: ignore[arg-type]


def test_every_cell_runs_once(tmp_path: Path) -> None:
    run_job = mocked_run()
    first = run(tmp_path, run_job, only=["*:padim"])
    assert [row.name for row in first.rows] == ["cookie:padim:0", "cookie:padim:1"]
    second = run(tmp_path, run_job)
    assert [row.name for row in second.rows] == [
        f"cookie:{m}:{s}" for m in ("variation_model", "padim") for s in (0, 1)
    ]
    assert len(run(tmp_path, run_job).rows) == 4
    assert run_job.call_count == 4
    assert len(read_rows(tmp_path / "out" / "rows.jsonl")) == 4
    assert not list((tmp_path / "out" / "runs").iterdir())


def test_the_table_is_returned_and_written_as_markdown_and_csv(tmp_path: Path) -> None:
    report = run(tmp_path, mocked_run(), only=["*:padim"])
    assert report.out == tmp_path / "out"
    assert "0.500 ± 0.000" in report.table
    markdown = (report.out / "table.md").read_text(encoding="utf-8")
    assert "| cookie | variation_model | 0 |" in markdown
    assert "| cookie | padim | 2 |" in markdown
    with (report.out / "table.csv").open(encoding="utf-8", newline="") as file:
        assert [row["seeds"] for row in csv.DictReader(file)] == ["0", "2"]


def test_after_a_failed_cell_the_others_run_and_it_is_tried_again(tmp_path: Path) -> None:
    report = run(tmp_path, mocked_run("cookie:padim:1"))
    assert [(failure.name, failure.reason) for failure in report.failures] == [("cookie:padim:1", "it broke")]
    assert len(report.rows) == 3
    left = tmp_path / "out" / "runs" / report.failures[0].key
    left.rmdir()  # it was kept, to resume
    again = run(tmp_path, mocked_run())
    assert (len(again.rows), again.failures) == (4, ())


def test_changed_images_are_measured_again(tmp_path: Path) -> None:
    run_job = mocked_run()
    run(tmp_path, run_job)
    next((tmp_path / "cookie" / "test" / "good").iterdir()).unlink()
    report = run(tmp_path, run_job)
    assert run_job.call_count == 8
    assert len(report.rows) == 4


def test_progress_is_on_stderr_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, mocked_run(), only=["*:padim:0"])
    assert capsys.readouterr() == ("", "")
    run(tmp_path, mocked_run(), only=["*:padim"], progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == ("2 methods x 1 categories x 2 seeds = 4 cells, 2 selected: 1 finished, 1 to run")
    assert "[1/1]" in err
    assert "cookie:padim:1: done in 12 s" in err


def test_a_second_benchmark_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no file locks")
    with exclusive_lock(tmp_path / "out" / ".lock", "benchmark"), pytest.raises(RunError, match="another"):
        run(tmp_path, mocked_run())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"workers": 0}, "workers is 0"), ({"threads": 0}, "threads is 0"), ({"memory": -1.0}, "memory")],
)
def test_invalid_numbers_are_errors(keywords: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, mocked_run(), **keywords)


def test_a_report_is_json(tmp_path: Path) -> None:
    values = json.loads(json.dumps(run(tmp_path, mocked_run("cookie:padim:0")).to_json()))
    assert values["rows"][0]["name"] == "cookie:variation_model:0"
    assert values["failures"] == [{"key": mock.ANY, "name": "cookie:padim:0", "reason": "it broke"}]
    assert values["out"] == str(tmp_path / "out")


def test_real_cells_in_worker_processes_have_the_rows_of_this_process(tmp_path: Path) -> None:
    data = [tiny_category(tmp_path / name / "cookie", train=6, good=2, defective=2) for name in ("a", "b")]
    config = VariationModelConfig(image_size=(32, 32))
    here = benchmark([config], data, out=tmp_path / "here", threads=1, device="cpu")
    there = benchmark([config], data, out=tmp_path / "there", threads=1, device="cpu", workers=2)
    assert [row.name for row in here.rows] == ["a/cookie:variation_model:0", "b/cookie:variation_model:0"]
    assert [row.metrics for row in here.rows] == [row.metrics for row in there.rows]
    assert here.failures == there.failures == ()


def test_without_ray_the_error_names_the_package(tmp_path: Path) -> None:
    with mock.patch.dict(sys.modules, {"ray": None}), pytest.raises(ConfigError, match=r'pip install "metalad\[ray\]"'):
        run(tmp_path, mocked_run(), ray="local")
