"""The options of each command.

Names and defaults are those of the public function; a test checks that they are equal.
"""

from argparse import SUPPRESS, ArgumentParser
from pathlib import Path


def add_train_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad train`."""
    parser.add_argument("data", metavar="DATA", type=Path, help="a category's folder, or any folder of good images")
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help="the run folder to write")
    parser.add_argument(
        "--method", metavar="NAME", default="metal_features", help="see `metalad methods`; %(default)s by default"
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of the method, such as depth=2; may be repeated; `metalad methods NAME` lists them",
    )
    others = (
        ("backbone", "NAME", "pretrained network of a method that uses one"),
        ("weights", "FILE", "of that network"),
    )
    for name, metavar, what in others:
        parser.add_argument(
            f"--{name}",
            metavar=metavar,
            dest="set",
            action="append",
            type=f"{name}={{}}".format,
            help=f"the same as --set {name}={metavar}: {what}",
        )
    parser.add_argument(
        "--protocol",
        choices=("default", "paper"),
        default="default",
        help="paper: train as published, however long; default: as good, in less time",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of random numbers; %(default)s by default")
    parser.add_argument("--epochs", metavar="N", type=int, help="train for this many epochs")
    parser.add_argument("--minutes", metavar="M", type=float, help="shorten gradient descent to this many minutes")
    parser.add_argument(
        "--false-alarms",
        metavar="RATE",
        type=float,
        default=0.01,
        help="wanted fraction of good images above the threshold; %(default)s by default",
    )
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    _strict_option(parser)
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of matrix products in training; by default bf16 where a measurement shows that it is faster",
    )
    _common_options(parser)


def add_evaluate_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad evaluate`."""
    _model_argument(parser, "model")
    parser.add_argument("data", metavar="DATA", type=Path, help="a category's folder with test images")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the reports; RUN/evaluation by default")
    _scoring_options(parser)
    parser.add_argument(
        "--corruptions",
        action="store_true",
        help="score the good images also with small changes of light, position, compression, noise and focus",
    )
    _strict_option(parser)
    _common_options(parser)


def add_predict_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad predict`."""
    _model_argument(parser, "run")
    parser.add_argument("paths", metavar="PATH", type=Path, nargs="+", help="images, or folders of them")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of maps, overlays and results")
    parser.add_argument(
        "--fail-on-anomalous",
        action="store_true",
        help="exit with 1 if any image is anomalous; an unreadable one is not scored, see --strict",
    )
    # The name until 0.1; to be removed in 0.4.
    parser.add_argument("--fail-on-abnormal", dest="fail_on_anomalous", action="store_true", help=SUPPRESS)
    parser.add_argument(
        "--batch-size", metavar="N", type=int, help="images in a batch; by default 1 on a CPU and 16 on a GPU"
    )
    for name in ("maps", "overlays"):
        parser.add_argument(f"--no-{name}", dest=name, action="store_false", help=f"write no {name}")
    parser.add_argument(
        "--format",
        choices=("jsonl", "csv", "coco"),
        default="jsonl",
        help="of the results in DIR, with all regions; %(default)s by default",
    )
    _many_options(parser, "process images in N processes at once; else in this one", "process images")
    parser.add_argument(
        "--resume", action="store_true", help="continue a stopped prediction; no finished image is processed again"
    )
    _scoring_options(parser)
    _strict_option(parser)
    _common_options(parser)


def add_compare_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad compare`."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folders or model files, two or more")
    parser.add_argument(
        "--data",
        metavar="CATEGORY",
        type=Path,
        help="the category's folder, to evaluate runs that were not; by default that of the first run's evaluation",
    )
    parser.add_argument(
        "--out", metavar="PAGE", type=Path, default=Path("comparison.html"), help="the page; %(default)s by default"
    )
    parser.add_argument("--images", metavar="N", type=int, default=12, help="images to show; %(default)s by default")
    _common_options(parser)


def add_methods_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad methods`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="list this method's settings")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_datasets_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad datasets`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="one data set; without it, all are listed")
    parser.add_argument("--data", metavar="ROOT", type=Path, help="check the copy of that set below this folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_demo_options(parser: ArgumentParser) -> None:
    """Add the options of `metalad demo`."""
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("demo-run"), help="the run folder; %(default)s by default"
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        default="metal_features",
        help="any of `metalad methods`, such as metal; %(default)s by default",
    )
    parser.add_argument(
        "--minutes",
        metavar="M",
        type=float,
        default=2.5,
        help="shorten gradient descent to this many minutes; %(default)s by default",
    )
    _common_options(parser)


def _many_options(parser: ArgumentParser, in_processes: str, verb: str) -> None:
    parser.add_argument("--workers", metavar="N", type=int, help=in_processes)
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="local",
        help=f"{verb} on a Ray cluster, by default a local one",
    )


def _model_argument(parser: ArgumentParser, name: str) -> None:
    parser.add_argument(name, metavar="RUN", type=Path, help="a run folder of `metalad train`, or a model file")


def _scoring_options(parser: ArgumentParser) -> None:
    parser.add_argument("--scoring", choices=("calibrated", "raw"), help="score that decides; the model's by default")
    parser.add_argument(
        "--false-alarms",
        metavar="RATE",
        type=float,
        help="wanted fraction of good images above the threshold; the model's by default",
    )


def _strict_option(parser: ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image; else skip and count")


def _common_options(parser: ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", default="auto", help="cpu, cuda or auto; %(default)s by default")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on stdout")
    parser.add_argument("--quiet", action="store_true", help="show no progress and no notes, only warnings")
