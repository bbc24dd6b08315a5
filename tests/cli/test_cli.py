"""The command line: quick, one line for a mistake, exit codes that scripts can rely on."""

import contextlib
import errno
import importlib
import inspect
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalad.cli import main as cli
from metalad.cli import terminal
from metalad.results.report import Confusion, Metrics, Report, Scoring
from metalad.runtime.errors import DataError, MetaladError

HELPS = [["--help"], *([verb, "--help"] for verb in cli.VERBS)]
LINES = {
    "train": ["train", "data", "--out", "run"],
    "evaluate": ["evaluate", "run", "data"],
    "predict": ["predict", "run", "a.png", "b.png", "--out", "judged"],
    "compare": ["compare", "run", "other"],
    "demo": ["demo"],
}
REPORT = Report(
    category="cookie",
    method="metal",
    run="run",
    resolution=(128, 128),
    smoothing_sigma=4.0,
    scorings=(
        Scoring("calibrated", 1.5, Metrics(pixel_auroc=0.75), Metrics(), Confusion(tp=1, fp=0, tn=1, fn=0)),
        Scoring("raw", 0.5, Metrics(), Metrics(), Confusion(tp=1, fp=0, tn=1, fn=0)),
    ),
    verdicts=(),
)


@dataclass(frozen=True)
class Judged:
    """What `predict` yields, as far as the command line looks at it."""

    path: str
    score: float | None = None
    abnormal: bool | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "error": self.error} if self.error else {"path": self.path, "score": self.score}


SCORED = (Judged("a.png", 0.5, False), Judged("b.png", error="not an image"), Judged("c.png", 2.5, True))


@dataclass(frozen=True)
class Header:
    """What `train` says of its model, as far as the command line looks at it."""

    method: str = "metal"
    images: Mapping[str, int] = field(default_factory=lambda: {"training": 28})
    thresholds: Mapping[str, float] = field(default_factory=lambda: {"calibrated": 1.5})
    false_alarms: float = 0.01


MODEL = SimpleNamespace(
    path=Path("run/model.safetensors"),
    header=Header(),
    scoring=lambda wanted: wanted or "calibrated",
    caution=lambda: "ask for less",
)


@contextlib.contextmanager
def stand_in(verb: str, function: Callable[..., Any]) -> Iterator[None]:
    """Put a function in a verb's place, without importing the verb; other modules imported meanwhile stay."""
    name = f"metalad.pipelines.{verb}"
    before, sys.modules[name] = sys.modules.get(name), ModuleType(name)
    setattr(sys.modules[name], verb, function)
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def raising(error: BaseException) -> Callable[..., Any]:
    def verb(**_: Any) -> Any:
        raise error

    return verb


def judging(*results: Judged) -> Callable[..., Iterator[Judged]]:
    def predict(**_: Any) -> Iterator[Judged]:
        yield from results

    return predict


def metalad(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metalad", *arguments], text=True, check=False, stderr=subprocess.PIPE, **options
    )


# Quick


@pytest.mark.parametrize("arguments", [*HELPS, ["methods"], ["--version"]], ids=" ".join)
def test_help_methods_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom metalad.cli.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert not end.code\n"
        "print([name for name in ('torch', 'numpy', 'scipy', 'matplotlib', 'PIL', 'tqdm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    *printed, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert printed


# The same words in Python and on the command line


@pytest.mark.parametrize("verb", sorted(LINES))
def test_options_are_the_functions_keywords_with_their_defaults(verb: str) -> None:
    function = getattr(importlib.import_module(f"metalad.pipelines.{verb}"), verb)
    keywords = {name: entry.default for name, entry in inspect.signature(function).parameters.items()}
    options = {
        name: value
        for name, value in vars(cli.build_parser().parse_args(LINES[verb])).items()
        if name not in cli.NOT_PASSED_ON
    }
    assert set(options) == set(keywords) - {"progress"}
    assert keywords["progress"] is False
    defaults = {name: default for name, default in keywords.items() if default is not inspect.Parameter.empty}
    assert {name: options[name] for name in defaults if name != "progress"} == {
        name: default for name, default in defaults.items() if name != "progress"
    }


def test_settings_of_the_method_become_its_config() -> None:
    train = mock.Mock(return_value=MODEL)
    with stand_in("train", train):
        assert cli.main([*LINES["train"], "--set", "depth=2", "--set", "image_size=64"]) == 0
    config = train.call_args.kwargs["method"]
    assert (type(config).__name__, config.depth, config.image_size) == ("MetalConfig", 2, (64, 64))


def test_a_backbone_and_its_weights_are_settings_too() -> None:
    train = mock.Mock(return_value=MODEL)
    with stand_in("train", train):
        arguments = ["--method", "padim", "--backbone", "resnet18", "--weights", "a.pth", "--set", "channels=50"]
        assert cli.main([*LINES["train"], *arguments]) == 0
    config = train.call_args.kwargs["method"]
    assert (config.backbone, config.weights, config.channels) == ("resnet18", "a.pth", 50)


def test_options_reach_the_function() -> None:
    predict = mock.Mock(side_effect=judging())
    with stand_in("predict", predict):
        cli.main([*LINES["predict"], "--no-maps", "--scoring", "raw", "--false-alarms", "0.1", "--quiet"])
    assert predict.call_args.kwargs["paths"] == [Path("a.png"), Path("b.png")]
    wanted = {"maps": False, "overlays": True, "scoring": "raw", "false_alarms": 0.1, "progress": False}
    assert wanted.items() <= predict.call_args.kwargs.items()


# Bad input


def failures() -> dict[str, tuple[BaseException, int, str]]:
    full = OSError(errno.ENOSPC, "No space left on device", "judged/a.png")
    refused = PermissionError(errno.EACCES, "Permission denied", "run/model.safetensors")
    return {
        "mistake": (DataError("data: no such folder;\ngive another"), 2, "error: data: no such folder; give another"),
        "disk full": (full, 2, "error: judged/a.png: No space left on device; free some space or choose another"),
        "no permission": (refused, 2, "error: run/model.safetensors: Permission denied; choose files"),
        "memory": (MemoryError(), 2, "error: not enough memory"),
        "memory of torch": (RuntimeError("CUDA out of memory. Tried to"), 2, "error: not enough memory"),
        "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
    }


@pytest.mark.parametrize("verb", sorted(LINES))
@pytest.mark.parametrize("failure", sorted(failures()))
def test_a_failure_is_one_line_and_an_exit_code(verb: str, failure: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, code, words = failures()[failure]
    with stand_in(verb, raising(error)):
        assert cli.main(LINES[verb]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"metalad: {words}")
    assert printed.err.count("\n") == 1


@given(st.text(), st.sampled_from(["mistake", "file name"]))
def test_no_text_and_no_file_name_makes_it_two_lines(text: str, place: str) -> None:
    error = MetaladError(text) if place == "mistake" else FileNotFoundError(errno.ENOENT, "No such file", text)
    with stand_in("demo", raising(error)), contextlib.redirect_stderr(io.StringIO()) as shown:
        assert cli.main(["demo"]) == 2
    assert shown.getvalue().startswith("metalad: error: ")
    assert len(shown.getvalue().splitlines()) == 1
    assert shown.getvalue().rstrip("\n").isprintable()


def test_a_traceback_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("METALAD_TRACEBACK", "1")
    with stand_in("demo", raising(DataError("no such folder"))):
        assert cli.main(["demo"]) == 2
    assert "Traceback" in (shown := capsys.readouterr().err)
    assert shown.endswith("metalad: error: no such folder\n")


def test_a_bug_keeps_its_traceback_and_is_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in("predict", raising(KeyError("oops"))):
        code = cli.main(LINES["predict"])
    assert code not in (0, cli.ABNORMAL_FOUND, terminal.BAD_INPUT)
    assert "Traceback" in (shown := capsys.readouterr().err)
    assert "KeyError: 'oops'" in shown


@pytest.mark.parametrize("arguments", [["nonsense"], ["train", "data"], ["train", "data", "--out", "r", "--seed", "x"]])
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_no_verb_shows_the_help_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr().err
    assert all(f"\n    {verb} " in shown for verb in cli.VERBS)


def test_an_unknown_method_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "nonsense"]) == 2
    assert "there are: metal" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device, not a path of ours)
        done = metalad("methods", stdout=full)
    assert done.returncode == 2
    assert done.stderr == "metalad: error: No space left on device; free some space or choose another folder\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows reports a closed pipe in other ways")
def test_a_closed_pipe_is_quiet() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "metalad", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == terminal.PIPE_CLOSED


# What is printed


def test_json_alone_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in("evaluate", mock.Mock(return_value=REPORT)):
        assert cli.main([*LINES["evaluate"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pixel_auroc"] == 0.75
    assert found["pixel_aupro"] is None
    assert found["report"] == str(Path("evaluation/report.html"))


def test_json_of_predict_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in("predict", judging(*SCORED)):
        assert cli.main([*LINES["predict"], "--json"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == [
        {"path": "a.png", "score": 0.5},
        {"path": "b.png", "error": "not an image"},
        {"path": "c.png", "score": 2.5},
    ]
    assert "skipped b.png: not an image" in printed.err
    assert "1 of 2 images abnormal, 1 unreadable" in printed.err


def test_predict_says_ok_or_ng(capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in("predict", judging(*SCORED)):
        cli.main([*LINES["predict"], "--quiet"])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["OK", "0.5", "a.png"],
        ["NG", "2.5", "c.png"],
    ]


@pytest.mark.parametrize(("results", "code"), [(SCORED, 1), (SCORED[:2], 0), ((), 0)])
def test_fail_on_abnormal(results: tuple[Judged, ...], code: int) -> None:
    with stand_in("predict", judging(*results)):
        assert cli.main([*LINES["predict"], "--fail-on-abnormal"]) == code
        assert cli.main(LINES["predict"]) == 0


def test_file_names_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    odd = "\x1b[2J\udcff.png"
    with stand_in("predict", judging(Judged(odd, 1.0, True), Judged(odd, error="bad"))):
        assert cli.main(LINES["predict"]) == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "\\udcff" in printed.out


def test_predict_is_closed_when_the_reader_goes_away() -> None:
    closed = []

    def predict(**_: Any) -> Iterator[Judged]:
        try:
            yield from SCORED
        finally:
            closed.append(True)

    with stand_in("predict", predict), mock.patch.object(cli, "_print_prediction", side_effect=BrokenPipeError):
        assert cli.main(LINES["predict"]) == terminal.PIPE_CLOSED
    assert closed


def test_train_tells_where_the_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in("train", mock.Mock(return_value=MODEL)):
        assert cli.main(LINES["train"]) == 0
        broadcast = capsys.readouterr()
        assert cli.main([*LINES["train"], "--quiet"]) == 0
    assert str(Path("run/model.safetensors")) in broadcast.out
    assert "ask for less" in broadcast.err
    assert capsys.readouterr().err == ""


def test_json_of_train_is_the_models_header(capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in("train", mock.Mock(return_value=MODEL)):
        assert cli.main([*LINES["train"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == str(Path("run/model.safetensors"))
    assert found["thresholds"] == {"calibrated": 1.5}


def test_methods_lists_settings_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "metal", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"name": "depth", "default": "1"}.items() <= next(
        entry for entry in found["settings"] if entry["name"] == "depth"
    ).items()
    assert cli.main(["methods", "--json"]) == 0
    assert "metal" in [entry["name"] for entry in json.loads(capsys.readouterr().out)]
