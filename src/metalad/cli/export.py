"""The subcommand `metalad export`: its options, and what it prints."""

from argparse import ArgumentParser, Namespace

import metalad
from metalad.cli.options import RUN
from metalad.cli.signature import add_parameters
from metalad.cli.terminal import print_json
from metalad.runtime.errors import ConfigError, printable

OWN_OPTIONS = {"command", "version", "json", "quiet", "listing"}


def add_export_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad export`."""
    add_parameters(
        parser,
        "pipelines/export.py",
        "export",
        positional=("model",),
        skip=("progress",),
        overrides={
            "model": {**RUN, "nargs": "?"},
            "out": {"metavar": "FILE", "required": False},
            "calibration_data": {"metavar": "PATH"},
            "data": {"metavar": "CATEGORY"},
        },
    )
    parser.add_argument("--list", dest="listing", action="store_true", help="list which methods can be exported")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on stdout")
    parser.add_argument("--quiet", action="store_true", help="show no progress and no notes, only warnings")


def run_export(options: Namespace) -> int:
    """Run `metalad export`.

    Raises:
        MetaladError: see `metalad.pipelines.export.export`; or no model or no file is given.
    """
    if options.listing:
        return _list(as_json=options.json)
    if options.model is None or options.out is None:
        raise ConfigError("give a trained model and the file to write: metalad export RUN --out FILE")
    given = {name: value for name, value in vars(options).items() if name not in OWN_OPTIONS}
    report = metalad.export(**given, progress=not options.quiet)
    if options.json:
        print_json(report.to_dict())
    else:
        print("\n".join(map(printable, report.text().splitlines())))
    return 0


def _list(*, as_json: bool) -> int:
    methods = metalad.list_methods()
    if as_json:
        print_json([{"name": each.name, "not_exportable": each.not_exportable} for each in methods])
        return 0
    width = max(len(method.name) for method in methods)
    for method in methods:
        print(f"{method.name:{width}}  {f'no: {method.not_exportable}' if method.not_exportable else 'yes'}")
    return 0
