"""The subcommand `metalad benchmark`: its options, and what it prints."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from metalad.cli.options import RAY
from metalad.cli.signature import add_parameters
from metalad.cli.terminal import print_json
from metalad.runtime.errors import printable

CELL_FAILED = 1

PLAN_KEYWORDS = ("methods", "data", "seeds", "settings", "protocol", "only")
KEYWORDS = (*PLAN_KEYWORDS, "out", "workers", "ray", "threads", "memory", "device")
"""Options that are arguments of the function `benchmark`."""


def add_benchmark_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad benchmark`."""
    add_parameters(
        parser,
        "pipelines/benchmark/pipeline.py",
        "benchmark",
        skip=("progress",),
        overrides={
            "methods": {
                "metavar": "NAME,...",
                "type": _names,
                "help": "methods, separated by commas; `metalad methods` lists them",
            },
            "data": {"metavar": "CATEGORY", "type": Path, "nargs": "+", "action": "extend"},
            "out": {"metavar": "DIR"},
            "settings": {
                "flag": "--set",
                "metavar": "NAME=VALUE",
                "action": "append",
                "default": [],
                "help": "a setting for every method that has it, such as image_size=256; may be repeated",
            },
            "only": {"metavar": "PATTERN", "nargs": "+", "action": "extend", "default": []},
            "ray": RAY,
            "memory": {"metavar": "GIB"},
        },
    )
    parser.add_argument("--list", dest="listing", action="store_true", help="list the cells and run nothing")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on stdout")
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def run_benchmark(options: Namespace) -> int:
    """Run `metalad benchmark` and return its exit code: 1 if a cell failed, else 0.

    Raises:
        MetaladError: see `metalad.pipelines.benchmark.benchmark`.
    """
    if options.listing:
        return _list_cells(options)
    from metalad.pipelines.benchmark import benchmark

    report = benchmark(**{name: getattr(options, name) for name in KEYWORDS}, progress=not options.quiet)
    if options.json:
        print_json(report.to_json())
    else:
        print(report.table)
        for failure in report.failures:
            print(printable(f"failed  {failure.key} {failure.name}: {failure.reason}"))
        print(printable(f"rows: {report.out / 'rows.jsonl'}"))
        print(printable(f"table: {report.out / 'table.md'}, {report.out / 'table.csv'}"))
    return CELL_FAILED if report.failures else 0


def _list_cells(options: Namespace) -> int:
    from metalad.pipelines.benchmark.plan import plan_benchmark

    plan = plan_benchmark(**{name: getattr(options, name) for name in PLAN_KEYWORDS})
    finished = plan.finished_rows(options.out)
    if options.json:
        print_json([
            {
                "key": cell.key,
                "name": cell.name,
                "method": cell.configuration.method,
                "settings": cell.configuration.settings,
                "category": cell.category,
                "seed": cell.seed,
                "protocol": cell.protocol,
                "finished": cell.key in finished,
            }
            for cell in plan.selected
        ])  # fmt: skip
        return 0
    for cell in plan.selected:
        print(printable(f"{cell.key}  {'done' if cell.key in finished else 'to do':5}  {cell.name}"))
    print(plan.summary())
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
