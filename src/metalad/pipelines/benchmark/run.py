"""Run a suite: do what is not done, keep a row of each finished cell, and say what could not be done."""

import contextlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalad.pipelines.benchmark.declaration import Cell, Protocol, Suite
from metalad.pipelines.benchmark.figure import compose, strip
from metalad.pipelines.benchmark.job import Failure, Job
from metalad.pipelines.benchmark.jobs import Results, in_processes, on_ray, one_by_one
from metalad.pipelines.benchmark.machine import commit
from metalad.pipelines.benchmark.places import Place, find_places, published_splits
from metalad.pipelines.benchmark.rows import Row, append_row, latest, read_rows
from metalad.pipelines.benchmark.suites import suite_named
from metalad.runtime.errors import ConfigError
from metalad.runtime.files import claimed
from metalad.runtime.tasks import Needs

RESULTS = Path("benchmarks/results")


@dataclass(frozen=True)
class Outcome:
    """What became of the chosen cells of a suite; `results` is the file of rows, `picture` that of a suite with one."""

    suite: str
    results: Path
    done: tuple[Row, ...]
    done_before: tuple[Cell, ...]
    failed: tuple[tuple[Cell, str], ...]
    absent: tuple[tuple[Cell, Place], ...]
    picture: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the outcome in JSON's own types."""
        return {
            "suite": self.suite,
            "results": str(self.results),
            "picture": None if self.picture is None else str(self.picture),
            "done": [row.to_json() for row in self.done],
            "done_before": [cell.key for cell in self.done_before],
            "failed": [{"key": cell.key, "name": cell.name, "reason": reason} for cell, reason in self.failed],
            "absent": [{"key": cell.key, "name": cell.name, "reason": place.reason} for cell, place in self.absent],
        }


def benchmark(
    suite: str | Suite,
    data: Path | None = None,
    *,
    out: Path = RESULTS,
    only: Sequence[str] = (),
    protocol: Protocol | None = None,
    workers: int | None = None,
    ray: str | None = None,
    threads: int = 2,
    memory: float = Needs.memory_gib,
    device: str = "auto",
    keep: bool = False,
    progress: bool = False,
) -> Outcome:
    """Do all cells of a suite that have no row yet, and append a row of each that succeeds to `out/SUITE.jsonl`.

    A row of the same cell in another suite's file counts, too. It may be killed at any moment; called again, it goes
    on where it stopped, inside a cell too. A cell that fails is named in the outcome and stops no other.

    Args:
        suite: a shipped suite's name, or one declared in Python.
        data: the folder below which the categories lie; a category that is not there is named in the outcome.
        out: where rows are kept; cells in flight lie in `out/runs/SUITE/KEY`.
        only: cells to do, by the beginning of a key or a pattern for names (`bottle:*`); all by default.
        protocol: `paper`: the cells trained as published, however long; None: those of the default protocol.
        workers: do so many cells at once, each in a process of its own; None: one by one in this process.
        ray: do the cells as tasks on Ray: the address of a cluster, or `local`; `workers` limits them.
        threads: of torch in each cell; the same number gives the same bits anywhere on one kind of machine.
        memory: GiB to set aside for a cell on Ray.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        keep: keep the work folder of a finished cell: model, log and report.
        progress: say on stderr what is being done.

    Raises:
        ConfigError: no such suite or cell, no data given, or Ray is wanted and missing.
        DataError: `data` is no folder. RunError: rows cannot be read or written, or another benchmark is at it.
    """
    _check(workers, threads, memory)
    declared = suite_named(suite) if isinstance(suite, str) else suite
    cells = declared.chosen(only, protocol)
    results = out / f"{declared.name}.jsonl"
    runs = out / "runs" / declared.name
    with claimed(out / "runs" / f".{declared.name}.lock", "benchmark"):
        before = known_rows(out, declared)
        pending = [cell for cell in cells if not is_done(declared, cell, before, out)]
        done_before = tuple(cell for cell in cells if cell not in pending)
        for cell in () if keep else cells:  # a kill between a row and the end of its folder leaves the folder
            if cell in done_before:
                shutil.rmtree(runs / cell.key, ignore_errors=True)
        places = locate(declared, pending, data)
        here = [cell for cell in pending if cell.category is None or places[cell.category].path]
        jobs = _jobs(declared, here, places, runs, threads, device)
        _log_progress(
            progress, f"{declared.name}: {len(jobs)} cells to do, {len(cells) - len(pending)} were done before"
        )
        with _results(jobs, workers, ray, memory, progress) as finished:
            done, failed = _collected(finished, len(jobs), results, keep, progress)
        picture = _picture(declared, out)
    return Outcome(
        suite=declared.name,
        results=results,
        done=tuple(done),
        done_before=done_before,
        failed=tuple(failed),
        absent=tuple((cell, places[cell.category]) for cell in pending if cell.category and cell not in here),
        picture=picture,
    )


def is_done(suite: Suite, cell: Cell, rows: Mapping[str, Row], out: Path) -> bool:
    """Whether a cell has its row, and its part of the picture where the suite has one."""
    return cell.key in rows and (not suite.picture or strip(out / "runs" / suite.name, cell.key).exists())


def _picture(suite: Suite, out: Path) -> Path | None:
    """Draw the suite's picture of what all its cells have drawn until now, whenever that was."""
    if not suite.picture:
        return None
    cells = {cell: strip(out / "runs" / suite.name, cell.key) for cell in suite.cells()}
    drawn = {cell.name: file for cell, file in cells.items() if file.exists()}
    absent = dict.fromkeys(cell.category or cell.name for cell, file in cells.items() if not file.exists())
    return compose(out / f"{suite.name}.png", suite, drawn, list(absent))


def known_rows(out: Path, suite: Suite) -> dict[str, Row]:
    """Return the rows of a suite's cells by their keys: its own, or else another suite's of the same cell.

    Raises:
        RunError: rows cannot be read.
    """
    keys = {cell.key for cell in suite.cells()}
    own = out / f"{suite.name}.jsonl"
    others = sorted(path for path in out.glob("*.jsonl") if path != own)
    borrowed = {row.key: row for path in others for row in read_rows(path) if row.key in keys}
    return borrowed | latest(read_rows(own))


def _collected(
    finished: Iterable[tuple[Job, Row | Failure]], count: int, results: Path, keep: bool, progress: bool
) -> tuple[list[Row], list[tuple[Cell, str]]]:
    """Append each row as it comes, and return the rows and the cells that failed, with the reasons."""
    done: list[Row] = []
    failed: list[tuple[Cell, str]] = []
    for job, result in finished:
        _log_progress(progress, f"[{len(done) + len(failed) + 1}/{count}] {_told(job.cell, result)}")
        if isinstance(result, Failure):
            failed.append((job.cell, result.reason))
            continue
        append_row(results, result)
        done.append(result)
        if not keep:
            shutil.rmtree(job.work, ignore_errors=True)
    return done, failed


def locate(suite: Suite, cells: Sequence[Cell], data: Path | None) -> dict[str, Place]:
    """Return where each category of the cells lies below `data`, if it does.

    Raises:
        ConfigError: a cell needs images and no folder is given. DataError: `data` is no folder.
    """
    categories = list(dict.fromkeys(cell.category for cell in cells if cell.category is not None))
    if not categories:
        return {}
    if data is None:
        raise ConfigError(
            f"suite {suite.name} needs images ({', '.join(categories)}); give --data, the folder around them"
        )
    return find_places(data, categories, published_splits(categories) if suite.whole else {})


def _check(workers: int | None, threads: int, memory: float) -> None:
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; it must be at least 1")
    if threads < 1:
        raise ConfigError(f"threads is {threads}; it must be at least 1")
    if not 0 < memory < 2**20:
        raise ConfigError(f"memory is {memory} GiB; it must be more than 0")


def _jobs(
    suite: Suite, cells: Sequence[Cell], places: Mapping[str, Place], runs: Path, threads: int, device: str
) -> list[Job]:
    now = commit()
    return [
        Job(
            suite=suite.name,
            cell=cell,
            data=str(places[cell.category].path) if cell.category is not None else None,
            work=str((runs / cell.key).absolute()),
            threads=threads,
            device=device,
            commit=now,
            picture=str(strip(runs, cell.key).absolute()) if suite.picture else None,
        )
        for cell in cells
    ]


@contextlib.contextmanager
def _results(
    jobs: Sequence[Job], workers: int | None, ray: str | None, memory: float, progress: bool
) -> Iterator[Results]:
    if ray is not None and jobs:
        results = on_ray(jobs, ray, workers, memory)
    elif workers is not None:
        results = in_processes(jobs, workers)
    else:
        results = one_by_one(jobs, progress=progress)
    with contextlib.closing(results):
        yield results


def _told(cell: Cell, result: Row | Failure) -> str:
    if isinstance(result, Failure):
        return f"{cell.key} {cell.name}: failed: {result.reason}"
    return f"{cell.key} {cell.name}: done in {result.cost['train_seconds'] + result.cost['evaluate_seconds']:.0f} s"


def _log_progress(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)
