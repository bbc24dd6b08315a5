"""Jobs elsewhere: in processes of their own, and on Ray, end in the rows of jobs done here."""

import os
import sys
from pathlib import Path
from unittest import mock

import pytest

from metalad.pipelines.benchmark.job import Failure, Job
from metalad.pipelines.benchmark.jobs import in_processes, on_ray, one_by_one
from metalad.pipelines.benchmark.rows import Row, comparable
from metalad.runtime.errors import ConfigError
from metalad.runtime.tasks import LOCAL
from tests.pipelines.benchmark.material import SUITE, put_category


def jobs_of(tmp_path: Path, *, missing: bool = True) -> list[Job]:
    """Two real jobs, and one whose images are not there."""
    data = put_category(tmp_path / "cookie")
    places = [data, data] + [tmp_path / "nowhere"] * missing
    return [
        Job(suite="trial", cell=cell, data=str(place), work=str(tmp_path / cell.key), threads=1, device="cpu")
        for cell, place in zip(SUITE.cells(), places, strict=False)
    ]


def compared(found: dict[Job, Row | Failure], jobs: list[Job]) -> list[object]:
    results = [found[job] for job in jobs]
    return [comparable(result) if isinstance(result, Row) else result for result in results]


def test_a_process_of_its_own_ends_in_the_same_outcome(tmp_path: Path) -> None:
    """A failing job is enough to see text and order; rows are compared on Ray and in test_resuming."""
    job = jobs_of(tmp_path)[2]
    (here,), (there,) = list(one_by_one([job], progress=False)), list(in_processes([job], 2))
    assert here == there
    assert isinstance(there[1], Failure)
    assert "nowhere" in there[1].reason


def test_a_process_that_is_killed_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -9 $$\n", encoding="utf-8")
    killer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killer))
    (result,) = in_processes(jobs_of(tmp_path)[:1], 1)
    assert result[1] == Failure("its process ended with code -9; it was killed, perhaps for memory")


def test_without_ray_the_remedy_is_said(tmp_path: Path) -> None:
    with mock.patch.dict(sys.modules, {"ray": None}), pytest.raises(ConfigError, match=r'pip install "metalad\[ray\]"'):
        next(on_ray(jobs_of(tmp_path), LOCAL, 2, 1.0))


@pytest.mark.filterwarnings("ignore")
def test_ray_ends_in_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason='Ray is not installed; pip install "metalad[ray]"', exc_type=ImportError)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    jobs = jobs_of(tmp_path)
    there = dict(on_ray(jobs, LOCAL, 2, 0.2))
    for job in jobs:
        assert (Path(job.work) / "state.json").exists() == (job.data != str(tmp_path / "nowhere"))
    fresh = [Job(**{**vars(job), "work": job.work + "-here"}) for job in jobs]
    here = dict(one_by_one(fresh, progress=False))
    assert compared(there, jobs) == compared(here, fresh)
    assert isinstance(there[jobs[2]], Failure)
