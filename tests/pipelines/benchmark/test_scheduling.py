"""Jobs in worker processes and on Ray have the same results as jobs in this process."""

import os
import sys
from pathlib import Path
from unittest import mock

import pytest

from metalad.pipelines.benchmark.job import Failure, Job
from metalad.pipelines.benchmark.rows import ResultRow, comparable
from metalad.pipelines.benchmark.scheduling import in_processes, in_this_process, on_ray
from metalad.runtime.errors import ConfigError
from metalad.runtime.tasks import LOCAL
from tests.pipelines.benchmark.material import CELLS, put_category


def jobs_of(tmp_path: Path, *, missing: bool = True) -> list[Job]:
    """Two real jobs, and one whose images are missing."""
    data = put_category(tmp_path / "cookie")
    folders = [data, data] + [tmp_path / "nowhere"] * missing
    return [
        Job(suite="trial", cell=cell, data=str(folder), work=str(tmp_path / cell.key), threads=1, device="cpu")
        for cell, folder in zip(CELLS, folders, strict=False)
    ]


def comparable_results(found: dict[Job, ResultRow | Failure], jobs: list[Job]) -> list[object]:
    results = [found[job] for job in jobs]
    return [comparable(result) if isinstance(result, ResultRow) else result for result in results]


def test_a_worker_process_has_the_same_result(tmp_path: Path) -> None:
    """A failing job is enough here; rows are compared on Ray and in test_resuming."""
    job = jobs_of(tmp_path)[2]
    (here,), (there,) = list(in_this_process([job], progress=False)), list(in_processes([job], 2))
    assert here == there
    assert isinstance(there[1], Failure)
    assert "nowhere" in there[1].reason


def test_a_killed_process_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -9 $$\n", encoding="utf-8")
    killer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killer))
    (result,) = in_processes(jobs_of(tmp_path)[:1], 1)
    assert result[1] == Failure("its process ended with code -9; it was killed, perhaps because memory ran out")


def test_without_ray_the_error_names_the_package(tmp_path: Path) -> None:
    with mock.patch.dict(sys.modules, {"ray": None}), pytest.raises(ConfigError, match=r'pip install "metalad\[ray\]"'):
        next(on_ray(jobs_of(tmp_path), LOCAL, 2, 1.0))


@pytest.mark.filterwarnings("ignore")
def test_ray_has_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason='Ray is not installed; pip install "metalad[ray]"', exc_type=ImportError)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    jobs = jobs_of(tmp_path)
    there = dict(on_ray(jobs, LOCAL, 2, 0.2))
    for job in jobs:
        assert (Path(job.work) / "state.json").exists() == (job.data != str(tmp_path / "nowhere"))
    fresh = [Job(**{**vars(job), "work": job.work + "-here"}) for job in jobs]
    here = dict(in_this_process(fresh, progress=False))
    assert comparable_results(there, jobs) == comparable_results(here, fresh)
    assert isinstance(there[jobs[2]], Failure)
