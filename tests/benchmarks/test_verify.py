import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.harness import verify as module
from benchmarks.harness.suite_run import run_suite
from benchmarks.harness.verify import TOLERANCE, Verification, verify
from metalad.pipelines.benchmark.job import Failure, Job
from metalad.pipelines.benchmark.rows import ResultRow, append_row, read_rows
from metalad.runtime.errors import ConfigError, RunError
from tests.benchmarks.material import SUITE
from tests.pipelines.benchmark.material import put_category


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images and the rows of two real cells, with bf16 as the faster precision; no HTML reports."""
    root = tmp_path_factory.mktemp("lab")
    put_category(root / "data" / "cookie")
    with (
        mock.patch("metalad.pipelines.evaluate.write_html_report"),
        mock.patch("metalad.pipelines.train.fastest_precision", return_value="bf16"),
    ):
        outcome = run_suite(SUITE, root / "data", out=root, only=["*:two:*"], threads=1, device="cpu")
        assert outcome.failed == ()
        yield root


def altered(lab: Path, tmp_path: Path, **changes: object) -> Path:
    """Write the first row with changes to a new folder."""
    append_row(tmp_path / "trial.jsonl", replace(read_rows(lab / "trial.jsonl")[0], **changes))  # type: ignore[arg-type]
    return tmp_path


def shifted(row: ResultRow, by: float) -> dict[str, object]:
    metrics = json.loads(json.dumps(row.metrics))
    metrics["raw"]["model"]["pixel_auroc"] += by
    return dict(metrics)


def again(lab: Path, out: Path) -> Verification:
    """Verify the first row in a folder, with a mock that returns the original result."""
    row = read_rows(lab / "trial.jsonl")[0]

    def recorded(jobs: Sequence[Job], *, progress: bool) -> Iterator[tuple[Job, ResultRow]]:
        assert not progress
        assert (jobs[0].config, jobs[0].threads, jobs[0].cell.key) == (row.config, 1, row.key)
        yield jobs[0], row

    with mock.patch.object(module, "in_this_process", recorded):
        return verify("trial", "1", lab / "data", out=out)


def test_a_row_holds_exactly_on_the_same_machine(lab: Path) -> None:
    second = read_rows(lab / "trial.jsonl")[1]
    found = verify("trial", second.key, lab / "data", out=lab)
    assert (found.holds, found.tolerance, found.differences) == (True, 0.0, ())
    assert found.again.seed == 1
    assert found.text().startswith(f"{second.key} cookie:two:1: holds, exactly (same machine and versions")


def test_a_changed_row_does_not_hold(lab: Path, tmp_path: Path) -> None:
    row = read_rows(lab / "trial.jsonl")[0]
    found = again(lab, altered(lab, tmp_path, metrics=shifted(row, 1e-9)))
    assert not found.holds
    assert [name for name, _, _ in found.differences] == ["metrics.raw.model.pixel_auroc"]
    assert "DOES NOT HOLD" in found.text()


@pytest.mark.parametrize(("by", "holds"), [(TOLERANCE / 2, True), (2 * TOLERANCE, False)])
def test_on_another_machine_a_tolerance_applies(by: float, holds: bool, lab: Path, tmp_path: Path) -> None:
    row = read_rows(lab / "trial.jsonl")[0]
    found = again(lab, altered(lab, tmp_path, metrics=shifted(row, by), machine={"cpu": "another"}))
    assert (found.holds, found.tolerance) == (holds, TOLERANCE)
    assert found.reason.startswith("other machine")


def test_a_row_of_a_gpu_is_verified_on_the_available_device(lab: Path, tmp_path: Path) -> None:
    second = read_rows(lab / "trial.jsonl")[1]
    append_row(tmp_path / "trial.jsonl", replace(second, device="cuda"))
    found = verify("trial", "1", lab / "data", out=tmp_path)
    assert (found.holds, found.tolerance) == (True, TOLERANCE)
    assert ("device" in found.reason) == (found.again.device == "cpu")


def test_other_images_are_an_error(lab: Path, tmp_path: Path) -> None:
    row = read_rows(lab / "trial.jsonl")[0]
    with pytest.raises(RunError, match="images of cookie differ from those of the row"):
        again(lab, altered(lab, tmp_path, data={**row.data, "test": "0"}))


@pytest.mark.parametrize("wanted", ["0", "3", "zzzz", ""])
def test_a_missing_row_is_an_error(wanted: str, lab: Path) -> None:
    with pytest.raises(ConfigError, match=r"matches \d of the 2 rows"):
        verify("trial", wanted, lab / "data", out=lab)


def test_a_cell_that_cannot_run_again_is_an_error(lab: Path) -> None:
    with pytest.raises(ConfigError, match="give --data"):
        verify("trial", "1", None, out=lab)

    def broken(jobs: Sequence[Job], *, progress: bool) -> Iterator[tuple[Job, Failure]]:
        assert not progress
        yield jobs[0], Failure("it broke")

    with (
        mock.patch.object(module, "in_this_process", broken),
        pytest.raises(RunError, match="cannot be run again: it broke"),
    ):
        verify("trial", "1", lab / "data", out=lab)


def test_a_row_contains_everything_needed_to_verify_it(lab: Path) -> None:
    row = read_rows(lab / "trial.jsonl")[0]
    assert row.config["depth"] == 2
    assert row.training["precision"] == "fp32"
    assert {"training", "validation", "evaluated", "train", "test", "all"} <= set(row.data)
    assert row.training["epochs"] == row.training["kept_epoch"] == 1
    assert set(row.metrics) == {"calibrated", "raw"}
    assert set(row.metrics["raw"]["per_defect"]) == {"hole"}
    assert row.cost["peak_memory"] > 1e7
    assert {"python", "torch", "numpy", "metalad"} <= set(row.versions)
    assert (row.threads, row.device) == (1, "cpu")
