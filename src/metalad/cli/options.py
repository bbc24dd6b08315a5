"""What each verb takes on the command line.

Names and defaults are those of the verb's function, and a test keeps them equal.
"""

from argparse import ArgumentParser
from pathlib import Path


def add_train_options(parser: ArgumentParser) -> None:
    """Add what `metalad train` takes."""
    parser.add_argument("data", metavar="DATA", type=Path, help="a category's folder, or any folder of good images")
    parser.add_argument("--out", metavar="RUN", type=Path, required=True, help="the run folder to make")
    parser.add_argument(
        "--method", metavar="NAME", default="metal", help="see `metalad methods`; %(default)s by default"
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of the method, such as depth=2; may be repeated; `metalad methods NAME` lists them",
    )
    others = (("backbone", "NAME", "network of a method that looks with one"), ("weights", "FILE", "of that network"))
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
        help="paper: train as published, however long; default: as good, much sooner",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of all chance; %(default)s by default")
    parser.add_argument("--epochs", metavar="N", type=int, help="train for so many epochs")
    parser.add_argument("--minutes", metavar="M", type=float, help="shorten training to fit into so many minutes")
    parser.add_argument(
        "--false-alarms",
        metavar="RATE",
        type=float,
        default=0.01,
        help="wanted fraction of good images above the threshold; %(default)s by default",
    )
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    _strict_option(parser)
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of matrix products in training; by default bf16 where a trial shows that it is well faster",
    )
    _common_options(parser)


def add_evaluate_options(parser: ArgumentParser) -> None:
    """Add what `metalad evaluate` takes."""
    _run_argument(parser)
    parser.add_argument("data", metavar="DATA", type=Path, help="a category's folder with test images")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the reports go; RUN/evaluation by default")
    _judging_options(parser)
    parser.add_argument(
        "--nuisance",
        action="store_true",
        help="judge the good images also with light, position, compression, noise and focus a little changed",
    )
    _strict_option(parser)
    _common_options(parser)


def add_predict_options(parser: ArgumentParser) -> None:
    """Add what `metalad predict` takes."""
    _run_argument(parser)
    parser.add_argument("paths", metavar="PATH", type=Path, nargs="+", help="images, or folders of them")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where maps and overlays go")
    parser.add_argument(
        "--fail-on-abnormal",
        action="store_true",
        help="exit with 1 if any image is abnormal; an unreadable one is not judged, see --strict",
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=16, help="images judged at once; %(default)s by default"
    )
    for name in ("maps", "overlays"):
        parser.add_argument(f"--no-{name}", dest=name, action="store_false", help=f"write no {name}")
    _many_options(parser, "judge in N processes at once; else in this one", "judge")
    parser.add_argument(
        "--resume", action="store_true", help="go on with what was stopped; no finished image is judged again"
    )
    _judging_options(parser)
    _strict_option(parser)
    _common_options(parser)


def add_compare_options(parser: ArgumentParser) -> None:
    """Add what `metalad compare` takes."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folders or model files, two or more")
    parser.add_argument(
        "--data",
        metavar="CATEGORY",
        type=Path,
        help="the category's folder, to evaluate runs that were not; by default where the first was evaluated",
    )
    parser.add_argument(
        "--out", metavar="PAGE", type=Path, default=Path("comparison.html"), help="the page; %(default)s by default"
    )
    parser.add_argument("--images", metavar="N", type=int, default=12, help="images to show; %(default)s by default")
    _common_options(parser)


def add_methods_options(parser: ArgumentParser) -> None:
    """Add what `metalad methods` takes."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="list this method's settings")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_datasets_options(parser: ArgumentParser) -> None:
    """Add what `metalad datasets` takes."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="one data set; without it, all are listed")
    parser.add_argument("--data", metavar="ROOT", type=Path, help="check the copy of that set below this folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_demo_options(parser: ArgumentParser) -> None:
    """Add what `metalad demo` takes."""
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
        help="shorten gradient descent to fit into so many minutes; %(default)s by default",
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


def _run_argument(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder of `metalad train`, or a model file")


def _judging_options(parser: ArgumentParser) -> None:
    parser.add_argument("--scoring", choices=("calibrated", "raw"), help="score to judge by; the model's by default")
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
    parser.add_argument("--quiet", action="store_true", help="show no progress and no notes")
