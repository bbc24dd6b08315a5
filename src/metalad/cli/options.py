"""The options of each command: those of the public function, and those that only the command line has."""

from argparse import SUPPRESS, ArgumentParser
from pathlib import Path
from typing import Any

from metalad.cli.parser import false_alarm_rate, score
from metalad.cli.signature import add_parameters

RUN: dict[str, Any] = {"metavar": "RUN", "type": Path}
RATE: dict[str, Any] = {"metavar": "RATE", "type": false_alarm_rate}
SCORE: dict[str, Any] = {"metavar": "X", "type": score}
RAY: dict[str, Any] = {"metavar": "ADDRESS", "nargs": "?", "const": "local"}


def add_train_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad train`."""
    add_parameters(
        parser,
        "pipelines/train.py",
        "train",
        positional=("data",),
        skip=("callback", "progress", "settings"),
        overrides={"data": {"metavar": "DATA"}, "out": {"metavar": "RUN"}, "false_alarms": RATE},
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of the method, such as depth=2; may be repeated; `metalad methods NAME` lists them",
    )
    for name, metavar, what in (
        ("backbone", "NAME", "pretrained network, if the method uses one"),
        ("weights", "FILE", "weights file of that network"),
    ):
        parser.add_argument(
            f"--{name}",
            metavar=metavar,
            dest="set",
            action="append",
            type=f"{name}={{}}".format,
            help=f"the same as --set {name}={metavar}: {what}",
        )
    _output_options(parser)


def add_evaluate_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad evaluate`."""
    add_parameters(
        parser,
        "pipelines/evaluate.py",
        "evaluate",
        positional=("model", "data"),
        skip=("maps", "progress"),
        overrides={
            "model": RUN,
            "data": {"metavar": "DATA"},
            "out": {
                "metavar": "DIR",
                "help": "a folder that gets report.json and a self-contained report.html; RUN/evaluation by default",
            },
            "false_alarms": RATE,
            "threshold": SCORE,
        },
    )
    _output_options(parser)


def add_predict_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad predict`."""
    add_parameters(
        parser,
        "pipelines/predict/run.py",
        "predict",
        positional=("run", "paths"),
        skip=("progress",),
        overrides={
            "run": RUN,
            "paths": {"metavar": "PATH", "type": Path, "nargs": "+"},
            "out": {"metavar": "DIR"},
            "false_alarms": RATE,
            "threshold": SCORE,
            "ray": RAY,
        },
    )
    parser.add_argument(
        "--fail-on-anomalous",
        action="store_true",
        help="exit with 1 if any image is anomalous; an unreadable one is not scored, see --strict",
    )
    # The name until 0.1; to be removed in 0.4.
    parser.add_argument("--fail-on-abnormal", dest="fail_on_anomalous", action="store_true", help=SUPPRESS)
    _output_options(parser)


def add_compare_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad compare`."""
    add_parameters(
        parser,
        "pipelines/compare.py",
        "compare",
        positional=("runs",),
        skip=("progress",),
        overrides={
            "runs": {"metavar": "RUN", "type": Path, "nargs": "+"},
            "data": {"metavar": "CATEGORY"},
            "out": {"metavar": "PAGE"},
        },
    )
    _output_options(parser)


def add_serve_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad serve`."""
    add_parameters(
        parser,
        "pipelines/serve.py",
        "serve",
        positional=("models",),
        overrides={
            "models": {"metavar": "MODEL", "nargs": "+"},
            "host": {"metavar": "ADDRESS"},
            "token_file": {"metavar": "FILE"},
            "keep_feedback": {"metavar": "DIR"},
        },
    )
    parser.add_argument("--quiet", action="store_true", help="log no requests, only warnings")


def add_methods_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad methods`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="list this method's settings")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_datasets_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad datasets`."""
    add_parameters(
        parser,
        "pipelines/datasets.py",
        "datasets",
        positional=("name",),
        overrides={"name": {"metavar": "NAME", "nargs": "?"}, "data": {"metavar": "ROOT"}},
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_demo_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad demo`."""
    add_parameters(parser, "pipelines/demo.py", "demo", skip=("progress",), overrides={"out": {"metavar": "DIR"}})
    _output_options(parser)


def _output_options(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on stdout")
    parser.add_argument("--quiet", action="store_true", help="show no progress and no notes, only warnings")
