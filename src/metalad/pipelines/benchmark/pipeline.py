"""Train and evaluate methods on categories with several seeds, and write the results as rows and as a table."""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metalad.pipelines.benchmark.cells import Cell, Protocol
from metalad.pipelines.benchmark.job import Job
from metalad.pipelines.benchmark.machine import commit
from metalad.pipelines.benchmark.plan import ROWS, Plan, plan_benchmark
from metalad.pipelines.benchmark.report import BenchmarkReport, CellFailure
from metalad.pipelines.benchmark.rows import ResultRow
from metalad.pipelines.benchmark.scheduling import Resources, append_results, print_progress, run_jobs
from metalad.pipelines.benchmark.table import csv_table, markdown_table, table_lines, text_table
from metalad.runtime.files import write_text
from metalad.runtime.lock import exclusive_lock

if TYPE_CHECKING:
    from metalad.detectors.base import DetectorConfig

SUITE = "benchmark"


def benchmark(
    methods: "Sequence[str | DetectorConfig]",
    data: Sequence[str | Path],
    *,
    out: str | Path = "benchmark",
    seeds: int = 1,
    settings: Sequence[str] = (),
    protocol: Protocol = "default",
    workers: int | None = None,
    ray: str | None = None,
    threads: int = 2,
    memory: float = 3.0,
    only: Sequence[str] = (),
    device: str = "auto",
    progress: bool = False,
) -> BenchmarkReport:
    """Train and evaluate every method on every category with every seed.

    A combination of method, category and seed is a cell. Each finished cell appends a row to `out/rows.jsonl`; a cell
    that has a row is skipped, unless its images or settings have changed. The process may be killed at any moment: the
    next call resumes, also within a cell. A failed cell is listed in the report, and the other cells still run. At the
    end `out/table.md` and `out/table.csv` are written.

    Args:
        methods: names of methods, or their configs.
        data: category folders with training and test images, in any layout that `metalad.data.read_category` reads.
        out: the folder for rows, tables and the work folders of unfinished cells (`runs/KEY`).
        seeds: the number of seeds per method and category: 0, 1, ….
        settings: `NAME=VALUE` texts, each for every method given by name that has such a setting.
        protocol: `paper`: train as published; `default`: similar results in much less time.
        workers: run this many cells at once, each in a process of its own; by default one after the other.
        ray: run the cells as Ray tasks: the address of a cluster, or `local`; `workers` then limits their number.
        threads: torch threads per cell; the same number gives the same bits on one kind of machine.
        memory: GiB reserved for a cell on Ray.
        only: run only these cells: beginnings of keys, or patterns for names `CATEGORY:METHOD[:SEED]`.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
        progress: print progress lines to stderr.

    Raises:
        ConfigError: an argument is invalid, or Ray is not available. DataError: a folder is not such a category.
        RunError: rows or tables cannot be read or written, or another benchmark uses `out`.
    """
    resources = Resources(workers, ray, threads, memory, device)
    plan = plan_benchmark(methods, data, seeds=seeds, settings=settings, protocol=protocol, only=only)
    folder = Path(out)
    with exclusive_lock(folder / ".lock", "benchmark"):
        rows = plan.finished_rows(folder)
        for key in rows:  # a process killed between writing a row and deleting the work folder leaves the folder
            shutil.rmtree(_work_folder(folder, key), ignore_errors=True)
        pending = [cell for cell in plan.selected if cell.key not in rows]
        print_progress(
            progress, f"{plan.summary()}: {len(plan.selected) - len(pending)} finished, {len(pending)} to run"
        )
        jobs = _jobs(plan, pending, folder, resources)
        with contextlib.closing(run_jobs(jobs, resources, progress=progress)) as results:
            new_rows, failures = append_results(results, len(jobs), folder / ROWS, progress=progress)
        return _report(plan, rows | {row.key: row for row in new_rows}, failures, folder)


def _jobs(plan: Plan, cells: Sequence[Cell], out: Path, resources: Resources) -> list[Job]:
    current_commit = commit()
    return [
        Job(
            suite=SUITE,
            cell=cell,
            data=str(plan.folders[cell.category or ""]),
            work=str(_work_folder(out, cell.key).absolute()),
            threads=resources.threads,
            device=resources.device,
            commit=current_commit,
            config=plan.configs[cell.key],
        )
        for cell in cells
    ]


def _work_folder(out: Path, key: str) -> Path:
    return out / "runs" / key


def _report(plan: Plan, rows: dict[str, ResultRow], failures: Sequence[tuple[Cell, str]], out: Path) -> BenchmarkReport:
    lines = table_lines(plan.cells, rows)
    write_text(out / "table.md", markdown_table(lines))
    write_text(out / "table.csv", csv_table(lines))
    return BenchmarkReport(
        rows=tuple(rows[cell.key] for cell in plan.cells if cell.key in rows),
        failures=tuple(CellFailure(cell.key, cell.name, reason) for cell, reason in failures),
        out=out,
        table=text_table(lines),
    )
