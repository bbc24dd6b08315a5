"""The command line: start-up time, options, output, error messages, and exit codes."""

import contextlib
import errno
import inspect
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import metalad
from metalad import DataError, MetaladError, Region, Report, SavedPrediction
from metalad.cli import commands, terminal
from metalad.cli.main import COMMANDS, build_parser, main
from metalad.methods.metal import MetalConfig
from metalad.methods.padim import PadimConfig
from metalad.pipelines.config import method_and_config
from metalad.results.caution import Caution
from metalad.results.report import Confusion, Metrics, ScoringReport

HELPS = [["--help"], *([command, "--help"] for command in COMMANDS)]
LINES = {
    "train": ["train", "data", "--out", "run"],
    "evaluate": ["evaluate", "run", "data"],
    "predict": ["predict", "run", "a.png", "b.png", "--out", "results"],
    "compare": ["compare", "run", "other"],
    "demo": ["demo"],
}
NOT_OPTIONS = {"train": {"callback", "settings"}, "evaluate": {"maps"}}
"""Arguments of the functions that only Python has; the settings of a method are given by --set."""
REPORT = Report(
    category="cookie",
    method="metal",
    run="run",
    resolution=(128, 128),
    smoothing_sigma=4.0,
    scorings=(
        ScoringReport("calibrated", 1.5, Metrics(pixel_auroc=0.75), Metrics(), Confusion(tp=1, fp=0, tn=1, fn=0)),
        ScoringReport("raw", 0.5, Metrics(), Metrics(), Confusion(tp=1, fp=0, tn=1, fn=0)),
    ),
    images=(),
)


def saved(path: str, score: float | None = None, error: str | None = None) -> SavedPrediction:
    """Return a result of `predict` with the threshold 1."""
    anomalous = None if score is None else score > 1
    regions = (Region((0, 0, 2, 2), 4, 2.5, ((1.0, 1.0),)),) if anomalous else ()
    return SavedPrediction(Path(path), score, 1.0, anomalous, regions, None, None, error)


RESULTS = (saved("a.png", 0.5), saved("b.png", error="not an image"), saved("c.png", 2.5))


@dataclass(frozen=True)
class Header:
    """The entries of a model's header that the command line prints."""

    thresholds: Mapping[str, float] = field(default_factory=lambda: {"calibrated": 1.5})
    config: Mapping[str, Any] = field(default_factory=lambda: {"scoring": "calibrated"})
    false_alarms: float = 0.01

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


CAUTION = Caution("severe", "ask for less")
MODEL = mock.Mock(
    path=Path("run/model.safetensors"), header=Header(), method="metal", images=28, caution=lambda: CAUTION
)


@contextlib.contextmanager
def replaced(command: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a public function of `metalad`, without importing the real one."""
    names = vars(metalad)
    before = names.get(command)
    names[command] = function
    try:
        yield
    finally:
        del names[command]
        if before is not None:
            names[command] = before


def raising(error: BaseException) -> Callable[..., Any]:
    def function(**_: Any) -> Any:
        raise error

    return function


def yielding(*results: SavedPrediction) -> Callable[..., Iterator[SavedPrediction]]:
    def predict(**_: Any) -> Iterator[SavedPrediction]:
        yield from results

    return predict


def run_metalad(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metalad", *arguments], text=True, check=False, stderr=subprocess.PIPE, **options
    )


# Start-up time


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


# Options are the arguments of the public functions


@pytest.mark.parametrize("command", sorted(LINES))
def test_options_are_the_functions_keywords_with_their_defaults(command: str) -> None:
    keywords = {
        name: entry.default
        for name, entry in inspect.signature(getattr(metalad, command)).parameters.items()
        if name not in NOT_OPTIONS.get(command, set())
    }
    options = {
        name: value
        for name, value in vars(build_parser().parse_args(LINES[command])).items()
        if name not in commands.NOT_PASSED_ON
    }
    assert set(options) == set(keywords) - {"progress"}
    assert keywords["progress"] is False
    defaults = {name: default for name, default in keywords.items() if default is not inspect.Parameter.empty}
    assert {name: options[name] for name in defaults if name != "progress"} == {
        name: default for name, default in defaults.items() if name != "progress"
    }


def test_settings_of_the_method_become_its_config() -> None:
    train = mock.Mock(return_value=MODEL)
    with replaced("train", train):
        assert main([*LINES["train"], "--method", "metal", "--set", "depth=2", "--set", "image_size=64"]) == 0
    given = train.call_args.kwargs
    assert (given["method"], given["depth"], given["image_size"]) == ("metal", "2", "64")
    _, config = method_and_config("metal", {name: given[name] for name in ("depth", "image_size")})
    assert config == MetalConfig(depth=2, image_size=(64, 64))


def test_a_backbone_and_its_weights_are_settings_too() -> None:
    train = mock.Mock(return_value=MODEL)
    with replaced("train", train):
        arguments = ["--method", "padim", "--backbone", "resnet18", "--weights", "a.pth", "--set", "channels=50"]
        assert main([*LINES["train"], *arguments]) == 0
    given = train.call_args.kwargs
    _, config = method_and_config("padim", {name: given[name] for name in ("backbone", "weights", "channels")})
    assert config == PadimConfig(backbone="resnet18", weights="a.pth", channels=50)


@pytest.mark.parametrize(
    ("setting", "part"), [("depth", "'depth' has no value; write NAME=VALUE"), ("epochs=3", "write --epochs 3")]
)
def test_a_malformed_setting_is_refused(setting: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    train = mock.Mock()
    with replaced("train", train):
        assert main([*LINES["train"], "--set", setting]) == 2
    assert part in capsys.readouterr().err
    train.assert_not_called()


def test_options_reach_the_function() -> None:
    predict = mock.Mock(side_effect=yielding())
    with replaced("predict", predict):
        main([*LINES["predict"], "--no-maps", "--scoring", "raw", "--false-alarms", "0.1", "--quiet"])
    assert predict.call_args.kwargs["paths"] == [Path("a.png"), Path("b.png")]
    wanted = {"maps": False, "overlays": True, "scoring": "raw", "false_alarms": 0.1, "progress": False}
    assert wanted.items() <= predict.call_args.kwargs.items()


def test_evaluate_writes_into_the_run_folder_by_default(tmp_path: Path) -> None:
    function = mock.Mock(return_value=REPORT)
    with replaced("evaluate", function):
        for model in (tmp_path, tmp_path / "model.safetensors"):
            assert main(["evaluate", str(model), "data", "--corruptions", "--quiet"]) == 0
            given = function.call_args.kwargs
            assert (given["model"], given["out"]) == (model, tmp_path / "evaluation")
            assert (given["corruptions"], given["progress"]) == (True, False)


# Bad input


def failures() -> dict[str, tuple[BaseException, int, str]]:
    full = OSError(errno.ENOSPC, "No space left on device", "results/a.png")
    refused = PermissionError(errno.EACCES, "Permission denied", "run/model.safetensors")
    return {
        "user error": (
            DataError("data: no such folder;\ngive another"),
            2,
            "error: data: no such folder; give another",
        ),
        "disk full": (full, 2, "error: results/a.png: No space left on device; free some space or choose another"),
        "no permission": (refused, 2, "error: run/model.safetensors: Permission denied; choose files"),
        "memory": (MemoryError(), 2, "error: not enough memory"),
        "memory of torch": (RuntimeError("CUDA out of memory. Tried to"), 2, "error: not enough memory"),
        "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
    }


@pytest.mark.parametrize("command", sorted(LINES))
@pytest.mark.parametrize("failure", sorted(failures()))
def test_a_failure_is_one_line_and_an_exit_code(command: str, failure: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, code, part = failures()[failure]
    with replaced(command, raising(error)):
        assert main(LINES[command]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"metalad: {part}")
    assert printed.err.count("\n") == 1


@settings(deadline=None)
@given(st.text(), st.sampled_from(["user error", "file name"]))
def test_an_error_is_one_line_for_any_text_and_file_name(text: str, source: str) -> None:
    error = MetaladError(text) if source == "user error" else FileNotFoundError(errno.ENOENT, "No such file", text)
    with replaced("demo", raising(error)), contextlib.redirect_stderr(io.StringIO()) as shown:
        assert main(["demo"]) == 2
    assert shown.getvalue().startswith("metalad: error: ")
    assert len(shown.getvalue().splitlines()) == 1
    assert shown.getvalue().rstrip("\n").isprintable()


def test_a_traceback_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("METALAD_TRACEBACK", "1")
    with replaced("demo", raising(DataError("no such folder"))):
        assert main(["demo"]) == 2
    assert "Traceback" in (shown := capsys.readouterr().err)
    assert shown.endswith("metalad: error: no such folder\n")


def test_a_bug_has_a_traceback_and_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with replaced("predict", raising(KeyError("oops"))):
        code = main(LINES["predict"])
    assert code not in (0, commands.ANOMALOUS_FOUND, terminal.BAD_INPUT)
    assert "Traceback" in (shown := capsys.readouterr().err)
    assert "KeyError: 'oops'" in shown


@pytest.mark.parametrize("arguments", [["nonsense"], ["train", "data"], ["train", "data", "--out", "r", "--seed", "x"]])
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_without_a_command_the_help_is_printed_and_the_exit_code_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().err
    assert all(f"\n    {command} " in shown for command in COMMANDS)


def test_an_unknown_method_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "nonsense"]) == 2
    assert "there are: metal" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_stdout_on_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device, not a path of ours)
        done = run_metalad("methods", stdout=full)
    assert done.returncode == 2
    reason = "cannot write the standard output: No space left on device; free some space or choose another folder"
    assert done.stderr == f"metalad: error: {reason}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows reports a closed pipe in other ways")
def test_a_closed_pipe_prints_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "metalad", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == terminal.PIPE_CLOSED


# Output


def test_json_alone_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with replaced("evaluate", mock.Mock(return_value=REPORT)):
        assert main([*LINES["evaluate"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pixel_auroc"] == 0.75
    assert found["pixel_aupro"] is None
    assert found["report"] == str(Path("evaluation/report.html"))


def test_json_of_predict_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with replaced("predict", yielding(*RESULTS)):
        assert main([*LINES["predict"], "--json"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == [
        RESULTS[0].to_dict(),
        {"path": "b.png", "error": "not an image"},
        RESULTS[2].to_dict(),
    ]
    assert "skipped b.png: not an image" in printed.err
    assert "1 of 2 images anomalous, 1 unreadable; written to results" in printed.err


def test_predict_prints_ok_or_ng(capsys: pytest.CaptureFixture[str]) -> None:
    with replaced("predict", yielding(*RESULTS)):
        main([*LINES["predict"], "--quiet"])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["OK", "0.5", "a.png"],
        ["NG", "2.5", "c.png"],
    ]


@pytest.mark.parametrize(("results", "code"), [(RESULTS, 1), (RESULTS[:2], 0), ((), 0)])
@pytest.mark.parametrize("option", ["--fail-on-anomalous", "--fail-on-abnormal"])
def test_fail_on_anomalous(results: tuple[SavedPrediction, ...], code: int, option: str) -> None:
    with replaced("predict", yielding(*results)):
        assert main([*LINES["predict"], option]) == code
        assert main(LINES["predict"]) == 0


def test_predict_that_can_score_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    unreadable = saved("b.png", error="not an image"), saved("c.png", error="empty")
    line = "metalad: error: none of 2 images could be scored; the first, b.png: not an image; results in results"
    for options in ([], ["--quiet"], ["--json"], ["--fail-on-anomalous"]):
        with replaced("predict", yielding(*unreadable)):
            assert main([*LINES["predict"], *options]) == terminal.BAD_INPUT
        assert capsys.readouterr().err.splitlines()[-1] == line
    with replaced("predict", yielding(*unreadable, saved("a.png", 0.5))):
        assert main(LINES["predict"]) == 0
    with replaced("predict", yielding()):  # nothing was left to be added to earlier results
        assert main([*LINES["predict"], "--append"]) == 0


def test_control_characters_in_file_names_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    odd = "\x1b[2J\udcff.png"
    with replaced("predict", yielding(saved(odd, 2.0), saved(odd, error="bad"))):
        assert main(LINES["predict"]) == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "\\udcff" in printed.out


def test_the_generator_of_predict_is_closed_when_stdout_is_closed() -> None:
    closed = []

    def predict(**_: Any) -> Iterator[SavedPrediction]:
        try:
            yield from RESULTS
        finally:
            closed.append(True)

    with replaced("predict", predict), mock.patch.object(commands, "_print_prediction", side_effect=BrokenPipeError):
        assert main(LINES["predict"]) == terminal.PIPE_CLOSED
    assert closed


def test_train_prints_the_path_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    with replaced("train", mock.Mock(return_value=MODEL)):
        assert main(LINES["train"]) == 0
        printed = capsys.readouterr()
        assert main([*LINES["train"], "--quiet"]) == 0
    assert str(Path("run/model.safetensors")) in printed.out
    assert printed.out.startswith("SEVERE WARNING: ask for less\n")
    assert capsys.readouterr() == printed


def test_json_of_train_is_the_models_header(capsys: pytest.CaptureFixture[str]) -> None:
    with replaced("train", mock.Mock(return_value=MODEL)):
        assert main([*LINES["train"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == str(Path("run/model.safetensors"))
    assert found["caution"] == {"severity": "severe", "text": "ask for less"}
    assert found["thresholds"] == {"calibrated": 1.5}


def test_methods_lists_settings_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "metal", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"name": "depth", "default": "1"}.items() <= next(
        entry for entry in found["settings"] if entry["name"] == "depth"
    ).items()
    assert main(["methods", "--json"]) == 0
    assert "metal" in [entry["name"] for entry in json.loads(capsys.readouterr().out)]
