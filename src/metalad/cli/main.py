"""The command line: parses arguments, and runs one command.

Exit codes: 0 done; 1 `predict --fail-on-anomalous` found an anomalous image, `datasets` found an incomplete copy, or
`benchmark` has a failed cell; 2 bad input, or no image that `predict` could score; 70 a bug in metalad; 130 Ctrl-C; 141
the reader of a pipe has closed it.
"""

import argparse
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from metalad.cli import commands
from metalad.cli.benchmark import add_benchmark_options, run_benchmark
from metalad.cli.export import add_export_options, run_export
from metalad.cli.options import (
    add_compare_options,
    add_datasets_options,
    add_demo_options,
    add_evaluate_options,
    add_methods_options,
    add_predict_options,
    add_serve_options,
    add_train_options,
)
from metalad.cli.parser import Parser, check_command
from metalad.cli.terminal import BAD_INPUT, escape_odd_file_names, explain, logged
from metalad.cli.watch import add_watch_options, run_watch
from metalad.runtime.streams import discard_unwritable_output, open_closed_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default the process's own, and return its exit code.

    A user's error prints one line on stderr; `METALAD_TRACEBACK=1` in the environment adds the traceback.

    Raises:
        SystemExit: argparse printed help (0) or an error in the arguments (2).
    """
    open_closed_streams()
    escape_odd_file_names()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # here a closed pipe or a full disk can still be reported
    except (Exception, KeyboardInterrupt) as error:
        return explain(error)
    finally:
        discard_unwritable_output()


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="metalad",
        description="Train on good images, and find which images are anomalous, and where.",
        epilog="`metalad COMMAND --help` shows more; start with `metalad demo`.",
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_options(subparser)
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    check_command(parser, arguments, COMMANDS)
    options = parser.parse_args(arguments)
    if options.version:
        from metalad.runtime.versions import own_version

        print(f"metalad {own_version()}")
        return 0
    if options.command is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    with logged(quiet=getattr(options, "quiet", False)):
        return COMMANDS[options.command].run(options)


class Command(NamedTuple):
    """A command: one line on it, the end of its help, and functions that add its options and run it."""

    summary: str
    epilog: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS: Mapping[str, Command] = {
    "train": Command(
        "train on good images",
        "example:\n  metalad train bottle --out runs/bottle",
        add_train_options,
        commands.train,
    ),
    "evaluate": Command(
        "measure a model on test images and write a report",
        "example:\n  metalad evaluate runs/bottle bottle",
        add_evaluate_options,
        commands.evaluate,
    ),
    "predict": Command(
        "score images and write their anomaly maps",
        "prints a line for each image, with --json a JSON object a line.\n\n"
        "example:\n  metalad predict runs/bottle new-images --out results --fail-on-anomalous",
        add_predict_options,
        commands.predict,
    ),
    "export": Command(
        "write a trained model as an ONNX or OpenVINO file, and check it",
        "the file predicts without torch; nothing is written if its scores differ from the trained model's.\n\n"
        "examples:\n  metalad export runs/bottle --out bottle.onnx\n"
        "  metalad export runs/bottle --out bottle.onnx --precision int8 --calibration-data bottle --data bottle",
        add_export_options,
        run_export,
    ),
    "serve": Command(
        "serve models over HTTP, with a page",
        "ends on SIGTERM or Ctrl-C after the accepted requests are answered.\n\n"
        "examples:\n  metalad serve runs/bottle\n"
        "  metalad serve bottle=runs/bottle cap=cap.onnx --host 0.0.0.0 --token-file token",
        add_serve_options,
        commands.serve,
    ),
    "watch": Command(
        "score images as they arrive in a folder, or frames of a camera, a stream or a video",
        "examples:\n  metalad watch runs/bottle inbox --out results --on-anomalous ./alarm\n"
        "  metalad watch runs/bottle camera:0 --out results --every 10\n"
        "  metalad watch --results results --csv > results.csv",
        add_watch_options,
        run_watch,
    ),
    "compare": Command(
        "compare runs in one page",
        "example:\n  metalad compare runs/metal runs/patchcore --data bottle",
        add_compare_options,
        commands.compare,
    ),
    "methods": Command(
        "list the methods, or the settings of one",
        "examples:\n  metalad methods\n  metalad methods metal",
        add_methods_options,
        commands.methods,
    ),
    "datasets": Command(
        "list the published data sets, or check a copy of one",
        "exits with 1 if the copy is incomplete; nothing is downloaded.\n\n"
        "examples:\n  metalad datasets\n  metalad datasets mvtec --data datasets",
        add_datasets_options,
        commands.datasets,
    ),
    "demo": Command(
        "train and evaluate on photographs of cookies that ship with metalad",
        "examples:\n  metalad demo\n  metalad demo --out cookies --method metal --minutes 1",
        add_demo_options,
        commands.demo,
    ),
    "benchmark": Command(
        "train and evaluate methods on your categories with several seeds, and print a table",
        "exits with 1 if a cell failed. A rerun skips finished cells.\n\n"
        "example:\n  metalad benchmark --methods metal_features,patchcore --data bottle pill --seeds 3",
        add_benchmark_options,
        run_benchmark,
    ),
}
