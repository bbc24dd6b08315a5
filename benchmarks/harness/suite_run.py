"""Run a suite: run the cells that have no row yet, and report what was done, failed or absent."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.category_search import CategoryFolder, find_categories, published_splits
from benchmarks.harness.declaration import Suite
from benchmarks.harness.figure import compose, strip_path
from benchmarks.harness.suites import suite_named
from metalad.pipelines.benchmark.cells import Cell, Protocol
from metalad.pipelines.benchmark.job import Job
from metalad.pipelines.benchmark.machine import commit
from metalad.pipelines.benchmark.rows import ResultRow, latest, read_rows
from metalad.pipelines.benchmark.scheduling import RUN_JOB, Resources, append_results, print_progress, run_jobs
from metalad.runtime.errors import ConfigError
from metalad.runtime.lock import exclusive_lock

RESULTS = Path("benchmarks/results")
RUN_JOB_WITH_EXAMPLES = "benchmarks.harness.examples:run_job_json"


@dataclass(frozen=True)
class SuiteOutcome:
    """The outcome of the selected cells; `results` is the file of rows, `picture` that of a suite with a picture."""

    suite: str
    results: Path
    done: tuple[ResultRow, ...]
    done_before: tuple[Cell, ...]
    failed: tuple[tuple[Cell, str], ...]
    absent: tuple[tuple[Cell, CategoryFolder], ...]
    picture: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return {
            "suite": self.suite,
            "results": str(self.results),
            "picture": None if self.picture is None else str(self.picture),
            "done": [row.to_json() for row in self.done],
            "done_before": [cell.key for cell in self.done_before],
            "failed": [{"key": cell.key, "name": cell.name, "reason": reason} for cell, reason in self.failed],
            "absent": [{"key": cell.key, "name": cell.name, "reason": folder.reason} for cell, folder in self.absent],
        }


def run_suite(
    suite: str | Suite,
    data: Path | None = None,
    *,
    out: Path = RESULTS,
    only: Sequence[str] = (),
    protocol: Protocol | None = None,
    workers: int | None = None,
    ray: str | None = None,
    threads: int = 2,
    memory: float = 3.0,
    device: str = "auto",
    keep: bool = False,
    progress: bool = False,
) -> SuiteOutcome:
    """Run all cells of a suite that have no row yet, and append a row per finished cell to `out/SUITE.jsonl`.

    A row of the same cell in the file of another suite counts, too. The process may be killed at any moment: the next
    call resumes, also within a cell. A failed cell is listed in the outcome, and the other cells still run.

    Args:
        suite: the name of a suite in `benchmarks.harness.suites`, or a suite.
        data: the folder that contains the categories; an absent category is listed in the outcome.
        out: the folder for rows; unfinished cells are in `out/runs/SUITE/KEY`.
        only: run only these cells: beginnings of keys, or patterns for names (`bottle:*`).
        protocol: `paper`: the cells trained as published; None: those of the default protocol.
        workers: run this many cells at once, each in a process of its own; None: one after the other in this process.
        ray: run the cells as Ray tasks: the address of a cluster, or `local`; `workers` then limits their number.
        threads: torch threads per cell; the same number gives the same bits on one kind of machine.
        memory: GiB reserved for a cell on Ray.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
        keep: keep the work folder of a finished cell: model, log and report.
        progress: print progress lines to stderr.

    Raises:
        ConfigError: no such suite or cell, no data given, or Ray is not available. DataError: `data` is not a folder.
        RunError: rows cannot be read or written, or another process runs the suite.
    """
    resources = Resources(workers, ray, threads, memory, device)
    declared = suite_named(suite) if isinstance(suite, str) else suite
    cells = declared.selected(only, protocol)
    results_file = out / f"{declared.name}.jsonl"
    runs = out / "runs" / declared.name
    with exclusive_lock(out / "runs" / f".{declared.name}.lock", "benchmark"):
        rows = known_rows(out, declared)
        pending = [cell for cell in cells if not is_done(declared, cell, rows, out)]
        done_before = tuple(cell for cell in cells if cell not in pending)
        for cell in () if keep else done_before:  # a process killed after writing a row leaves the work folder
            shutil.rmtree(runs / cell.key, ignore_errors=True)
        folders = locate(declared, pending, data)
        present = [cell for cell in pending if cell.category is None or folders[cell.category].path]
        jobs = _jobs(declared, present, folders, runs, resources)
        print_progress(
            progress,
            f"{declared.name}: {len(cells)} cells selected, {len(done_before)} done before, {len(jobs)} to run",
        )
        function = RUN_JOB_WITH_EXAMPLES if declared.picture else RUN_JOB
        with contextlib.closing(run_jobs(jobs, resources, function=function, progress=progress)) as results:
            done, failed = append_results(results, len(jobs), results_file, keep=keep, progress=progress)
        picture = _compose_picture(declared, out)
    return SuiteOutcome(
        suite=declared.name,
        results=results_file,
        done=tuple(done),
        done_before=done_before,
        failed=tuple(failed),
        absent=tuple((cell, folders[cell.category]) for cell in pending if cell.category and cell not in present),
        picture=picture,
    )


def is_done(suite: Suite, cell: Cell, rows: Mapping[str, ResultRow], out: Path) -> bool:
    """Return whether a cell has a row, and its strip of examples if the suite has a picture."""
    return cell.key in rows and (not suite.picture or strip_path(out / "runs" / suite.name, cell.key).exists())


def known_rows(out: Path, suite: Suite) -> dict[str, ResultRow]:
    """Return the rows of a suite's cells by their keys, from its own file or else from those of other suites.

    Raises:
        RunError: rows cannot be read.
    """
    keys = {cell.key for cell in suite.cells()}
    own = out / f"{suite.name}.jsonl"
    others = sorted(path for path in out.glob("*.jsonl") if path != own)
    shared = {row.key: row for path in others for row in read_rows(path) if row.key in keys}
    return shared | latest(read_rows(own))


def locate(suite: Suite, cells: Sequence[Cell], data: Path | None) -> dict[str, CategoryFolder]:
    """Return the folder of each category of the cells below `data`.

    Raises:
        ConfigError: a cell needs images and `data` is None. DataError: `data` is not a folder.
    """
    categories = list(dict.fromkeys(cell.category for cell in cells if cell.category is not None))
    if not categories:
        return {}
    if data is None:
        raise ConfigError(
            f"suite {suite.name} needs images ({', '.join(categories)}); give --data, the folder that contains them"
        )
    return find_categories(data, categories, published_splits(categories) if suite.whole else {})


def _compose_picture(suite: Suite, out: Path) -> Path | None:
    """Draw the suite's picture from the strips of all its cells, also of earlier runs."""
    if not suite.picture:
        return None
    cells = {cell: strip_path(out / "runs" / suite.name, cell.key) for cell in suite.cells()}
    strips = {cell.name: file for cell, file in cells.items() if file.exists()}
    absent = dict.fromkeys(cell.category or cell.name for cell, file in cells.items() if not file.exists())
    return compose(out / f"{suite.name}.png", suite, strips, list(absent))


def _jobs(
    suite: Suite, cells: Sequence[Cell], folders: Mapping[str, CategoryFolder], runs: Path, resources: Resources
) -> list[Job]:
    current_commit = commit()
    return [
        Job(
            suite=suite.name,
            cell=cell,
            data=str(folders[cell.category].path) if cell.category is not None else None,
            work=str((runs / cell.key).absolute()),
            threads=resources.threads,
            device=resources.device,
            commit=current_commit,
        )
        for cell in cells
    ]
