"""The package's files, and the commands of dev.py that install and check it."""

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

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
    assert set(runtime["dependencies"]) <= {*main["dependencies"], *extras["runtime"]}
    assert not {"torch", "scipy", "matplotlib"} & {line.partition(">")[0] for line in runtime["dependencies"]}
    for name, packages in runtime["optional-dependencies"].items():
        assert packages == extras[name]
