"""The package's files, and the commands of dev.py that install and check it."""

import importlib.util
import json
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.exported import exported_onnx, score_of
from tests.slow import SLOW

ROOT = Path(__file__).resolve().parents[1]
INDEX = "https://index.example/cpu"


@pytest.fixture
def dev() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Commands = list[list[str]]


@pytest.fixture
def commands(dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    """The commands that dev.py would run, without its environment's path."""
    commands: Commands = []

    def record(program: Path, *arguments: object, **_: object) -> None:
        commands.append([program.name, *map(str, arguments)])

    monkeypatch.setattr(dev, "run", record)
    monkeypatch.setenv("METALAD_VENV", str(tmp_path / "venv"))
    monkeypatch.delenv("METALAD_TORCH_INDEX", raising=False)
    (tmp_path / "venv").mkdir()
    monkeypatch.setattr(dev, "has_pip", lambda _: True)
    return commands


@pytest.fixture
def call(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run dev.py's command line."""

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["dev.py", *arguments])
        dev.main()

    return call


def pip_installs(commands: Commands) -> Commands:
    return [command[5:] for command in commands if command[1:3] == ["-m", "pip"]]


# Environments


def test_all_packages_come_from_the_default_index(call: Callable[..., None], commands: Commands) -> None:
    call("setup")
    lock, package = pip_installs(commands)
    assert lock == ["--no-compile", "--requirement", str(ROOT / "requirements.lock")]
    assert package == ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]


def test_setup_installs_the_packages_of_tests_on_demand(
    call: Callable[..., None], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    call("setup", "--tests")
    assert pip_installs(commands)[0] == ["--no-compile", "--requirement", str(ROOT / "requirements-test.lock")]
    with pytest.raises(SystemExit, match="2"):
        call("setup", "--test")
    assert "setup has no such arguments: --test; there is --tests" in capsys.readouterr().err


@pytest.mark.parametrize("by_option", [True, False])
def test_only_torch_comes_from_another_index(
    call: Callable[..., None], commands: Commands, monkeypatch: pytest.MonkeyPatch, by_option: bool
) -> None:
    if by_option:
        call("--index", INDEX, "setup")
    else:
        monkeypatch.setenv("METALAD_TORCH_INDEX", INDEX)
        call("setup")
    torch, *others = pip_installs(commands)
    assert torch[:-1] == ["--no-compile", "--no-deps", "--index-url", INDEX]
    assert torch[-1] in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert torch[-1].startswith("torch==")
    assert others
    assert not any("--index-url" in command for command in others)


@pytest.mark.parametrize("arguments", [[], ["tests/test_docs.py", "-x"]])
def test_fast_deselects_slow_tests(call: Callable[..., None], commands: Commands, arguments: list[str]) -> None:
    call("test", *arguments)
    complete = commands[-1]
    call("test", "--fast", *arguments)
    assert complete[1:3] == ["-m", "pytest"]
    assert complete[len(complete) - len(arguments) :] == arguments
    assert commands[-1] == [*complete, "-m", "not slow"]


@pytest.mark.parametrize("entry", SLOW)
def test_every_slow_test_exists(entry: str) -> None:
    file, _, name = entry.partition("::")
    path = ROOT / "tests" / file
    assert path.is_dir() if file.endswith("/") else f"def {name or 'test_'}" in path.read_text(encoding="utf-8")


# The wheel


def write_wheel(path: Path, *names: str, size: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, bytes(size))
    return path


def test_the_wheel_is_complete(dev: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert dev.wheel_problems(wheel) == []
    with zipfile.ZipFile(wheel) as archive:
        files = {name.removeprefix("metalad/") for name in archive.namelist() if name.startswith("metalad/")}
    package = ROOT / "src" / "metalad"
    sources = [path for path in package.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".pyo")]
    assert files == {path.relative_to(package).as_posix() for path in sources}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("benchmarks/harness/rows.py", "has a file outside of the package: benchmarks/harness/rows.py"),
        ("metalad/benchmarks/rows.py", "has a file that is for development only: metalad/benchmarks/rows.py"),
        ("metalad/pipelines/suites.py", "has a file that is for development only: metalad/pipelines/suites.py"),
        ("tests/tiny.py", "has a file outside of the package: tests/tiny.py"),
    ],
)
def test_files_for_development_are_a_problem(dev: ModuleType, tmp_path: Path, name: str, problem: str) -> None:
    good = (*dev.WHEEL_FILES, "metalad/pipelines/benchmark/rows.py", "metalad-0.2.0.dist-info/METADATA")
    assert dev.wheel_problems(write_wheel(tmp_path / "good.whl", *good)) == []
    assert dev.wheel_problems(write_wheel(tmp_path / "bad.whl", *good, name)) == [problem]


def test_a_missing_file_and_a_large_wheel_are_problems(dev: ModuleType, tmp_path: Path) -> None:
    first, *others = dev.WHEEL_FILES
    assert dev.wheel_problems(write_wheel(tmp_path / "less.whl", *others)) == [f"lacks {first}"]
    (problem,) = dev.wheel_problems(write_wheel(tmp_path / "large.whl", *dev.WHEEL_FILES, size=3_000_001))
    assert problem.endswith("not less than 12,000,000")


# The distribution without torch


def test_the_runtime_distribution_has_the_version_and_the_lower_bounds_of_the_main_one() -> None:
    main, runtime = (
        tomllib.loads((ROOT / path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for path in (".", "packaging/runtime")
    )
    assert runtime["version"] == main["version"]
    assert runtime["requires-python"] == main["requires-python"]
    extras = main["optional-dependencies"]
    lower_bounds = {line.partition(",")[0] for line in runtime["dependencies"]}
    assert lower_bounds <= {*main["dependencies"], *extras["runtime"]}
    assert not {"torch", "scipy", "matplotlib"} & {line.partition(">")[0] for line in runtime["dependencies"]}
    for name, packages in runtime["optional-dependencies"].items():
        assert packages == extras[name]


LEFT_OUT = ("methods", "detectors", "training", "nn", "exporting", "data/demo_images")


@pytest.fixture(scope="module")
def runtime_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the runtime's wheel."""
    folder = tmp_path_factory.mktemp("runtime")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT / "packaging" / "runtime")], check=True, capture_output=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "files")
    return folder / "files"


def test_the_runtime_has_all_files_but_those_of_training(runtime_files: Path) -> None:
    def files(package: Path) -> set[str]:
        return {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}

    everything = {name for name in files(ROOT / "src" / "metalad") if "__pycache__" not in name}
    training = {name for name in everything if name.startswith(tuple(f"{folder}/" for folder in LEFT_OUT))}
    assert len(training) > 100
    assert files(runtime_files / "metalad") == everything - training


RUNTIME = """
import sys
sys.path.insert(0, {folder!r})
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "scipy", "matplotlib", "safetensors"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
import metalad
assert metalad.__file__.startswith({folder!r})
from metalad.cli.main import main
"""


def in_runtime(folder: Path, code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", RUNTIME.format(folder=str(folder)) + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_runtime_predicts(runtime_files: Path, tmp_path: Path) -> None:
    model = exported_onnx(tmp_path / "x.onnx")
    pixels = np.full((64, 48, 3), 120, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "5.png")
    arguments = ["predict", str(model), str(tmp_path / "5.png"), "--out", str(tmp_path / "out"), "--json"]
    done = in_runtime(runtime_files, "sys.exit(main(sys.argv[1:]))", *arguments)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert json.loads(done.stdout)["score"] == pytest.approx(score_of(pixels))
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "images", "--out", "run"),
        ("evaluate", "x.onnx", "images"),
        ("export", "run", "--out", "x.onnx"),
        ("methods",),
        ("demo",),
        ("predict", "run", "images", "--out", "out"),
    ],
)
def test_a_command_that_the_runtime_lacks_says_what_to_install(runtime_files: Path, arguments: tuple[str, ...]) -> None:
    done = in_runtime(runtime_files, "sys.exit(main(sys.argv[1:]))", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "install metalad instead of metalad-runtime" in line


def test_a_public_function_that_the_runtime_lacks_says_what_to_install(runtime_files: Path) -> None:
    code = """
for name in metalad.__all__:
    try:
        getattr(metalad, name)
    except metalad.MetaladError as error:
        print(name, "|", error)
"""
    done = in_runtime(runtime_files, code)
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert {"train", "fit", "demo_images", "evaluate", "export"} <= set(lines)
    assert not {"load", "predict", "serve", "watch", "datasets", "Model", "Result"} & set(lines)
    for name, line in lines.items():
        assert line.startswith(f"metalad.{name} needs ")
        assert line.endswith("; install metalad instead of metalad-runtime")
