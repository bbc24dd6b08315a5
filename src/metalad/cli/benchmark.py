"""The subcommand `metalad benchmark`: its options, and what it prints."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from metalad.cli.terminal import print_json
from metalad.runtime.errors import printable

CELL_FAILED = 1

PLAN_KEYWORDS = ("methods", "data", "seeds", "settings", "protocol", "only")
KEYWORDS = (*PLAN_KEYWORDS, "out", "workers", "ray", "threads", "memory", "device")
"""Options that are arguments of the function `benchmark`."""


def add_benchmark_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad benchmark`."""
    parser.add_argument(
        "--methods",
        metavar="NAME,...",
        type=_names,
        required=True,
        help="methods, separated by commas; `metalad methods` lists them",
    )
    parser.add_argument(
        "--data",
        metavar="CATEGORY",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        help="category folders with training and test images",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("benchmark"),
        help="folder for rows.jsonl, table.md and table.csv; %(default)s by default",
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        default=1,
        help="seeds per method and category: 0 to N-1; %(default)s by default",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting for every method that has it, such as image_size=256; may be repeated",
    )
    parser.add_argument(
        "--protocol",
        choices=("default", "paper"),
        default="default",
        help="paper: train as published, however long it takes; %(default)s by default",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        nargs="+",
        action="extend",
        default=[],
        help="run only these cells: beginnings of keys, or patterns for CATEGORY:METHOD[:SEED] such as 'bottle:*'",
    )
    parser.add_argument("--list", dest="listing", action="store_true", help="list the cells and run nothing")
    _add_resource_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on stdout")
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def _add_resource_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help="run N cells at once, each in its own process; else one after the other",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="local",
        help="run the cells on a Ray cluster, by default a local one",
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, default=2, help="torch threads per cell; %(default)s by default"
    )
    parser.add_argument(
        "--memory", metavar="GIB", type=float, default=3.0, help="memory per cell on Ray; %(default)s by default"
    )
    parser.add_argument("--device", metavar="NAME", default="auto", help="cpu, cuda or auto; %(default)s by default")


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
