#!/usr/bin/env python3
"""Commands for developers. They need Python 3.11 or newer and nothing else.

python3 dev.py setup          create .venv with the locked packages and metalad, installed from this folder
python3 dev.py setup --tests  the same with the packages that tests need
python3 dev.py demo           setup, then `metalad demo`; further arguments are passed to it, such as --minutes 1
python3 dev.py test           setup with test packages, then ruff, mypy, lint-imports and pytest; further arguments
                              are passed to pytest
python3 dev.py test --fast    the same without tests marked as slow: under a minute
python3 dev.py package        build and check the sdist and the wheel; install the wheel into a new environment and
                              run the README's example there
python3 dev.py docs           build the documentation site in build/site, in the environment .venv-docs
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 (users with an older Python run this file first)
    sys.exit("metalad needs Python 3.11 or newer; this is {}.{}".format(*sys.version_info[:2]))

ROOT = Path(__file__).resolve().parent
RUNTIME_LOCK = ROOT / "requirements.lock"
TEST_LOCK = ROOT / "requirements-test.lock"
DOCS_LOCK = ROOT / "requirements-docs.lock"
PROGRAMS = "Scripts" if os.name == "nt" else "bin"
MAX_WHEEL_BYTES = 12_000_000
WHEEL_FILES = (
    "metalad/py.typed",
    "metalad/results/pages/templates/report.html",
    "metalad/service/page/index.html",
    "metalad/service/page/page.js",
    "metalad/data/demo_images/cookie/LICENSE.txt",
    "metalad/data/demo_images/cookie/train/good/000.jpg",
)


def main() -> None:
    """Read the command line, prepare the environment and run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--venv",
        type=Path,
        default=Path(os.environ.get("METALAD_VENV", ROOT / ".venv")),
        help="use this environment instead of .venv (also: the environment variable METALAD_VENV)",
    )
    parser.add_argument(
        "--index",
        metavar="URL",
        default=os.environ.get("METALAD_TORCH_INDEX"),
        help="install torch from this package index, such as PyTorch's index of CPU builds; all other packages come "
        "from pip's own (also: METALAD_TORCH_INDEX). A torch that is already installed is not replaced",
    )
    parser.add_argument("what", choices=("setup", "demo", "test", "package", "docs"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to `metalad demo`, pytest or mkdocs")
    options = parser.parse_args()
    if options.what == "setup" and options.arguments not in ([], ["--tests"]):
        parser.error(f"setup has no such arguments: {shlex.join(options.arguments)}; there is --tests")
    venv = options.venv.absolute()
    if options.what == "docs":
        docs(venv.with_name(f"{venv.name}-docs"), options.arguments)
        return
    with_tests = options.what in ("test", "package") or (options.what == "setup" and bool(options.arguments))
    prepare(venv, with_tests=with_tests, index=options.index)
    if options.what == "demo":
        run(program(venv, "metalad"), "demo", *options.arguments)
    if options.what == "test":
        test(venv, options.arguments)
    if options.what == "package":
        package(venv, options.index)


def prepare(venv: Path, *, with_tests: bool, index: str | None) -> None:
    """Install the locked packages and metalad into the environment, unless they are installed already."""
    stamp = venv / ("metalad-test.stamp" if with_tests else "metalad-runtime.stamp")
    wanted = fingerprint()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and program(venv, "metalad").exists():
        print(f"dev: {venv} is up to date", flush=True)
        return
    python = program(venv, "python")
    if not has_pip(python):
        if venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file():
            sys.exit(f"dev: {venv} is a folder with other content, not an environment; choose another")
        run(sys.executable, "-m", "venv", "--clear", venv)
    # pip compiles every module of torch otherwise, most of which are never imported; that takes longer than the rest.
    install(python, TEST_LOCK if with_tests else RUNTIME_LOCK, index, "--no-compile")
    # The build backend is locked too: no isolated build, which would download its newest version.
    pip(python, "--no-deps", "--no-build-isolation", "--editable", ROOT)
    for name in ("metalad-runtime.stamp", "metalad-test.stamp")[: 1 + with_tests]:
        (venv / name).write_text(wanted, encoding="utf-8")


def install(python: Path, lock: Path, index: str | None, *options: str) -> None:
    """Install all packages of a lock; torch from another package index, if one is given."""
    if index:
        (torch,) = re.findall(r"^torch==.*$", RUNTIME_LOCK.read_text(encoding="utf-8"), re.MULTILINE)
        pip(python, *options, "--no-deps", "--index-url", index, torch)
    pip(python, *options, "--requirement", lock)


def pip(python: Path, *arguments: str | Path) -> None:
    """Run `pip install` with the arguments."""
    run(python, "-m", "pip", "--disable-pip-version-check", "install", *arguments)


def fingerprint() -> str:
    """Return a hash of everything that determines the environment: the locks, pyproject.toml and this folder's path."""
    digest = hashlib.sha256(str(ROOT).encode())
    for file in (RUNTIME_LOCK, TEST_LOCK, ROOT / "pyproject.toml"):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def test(venv: Path, arguments: list[str]) -> None:
    """Run all checks, the quick ones first. `--fast` deselects slow tests, other arguments are passed to pytest."""
    python = program(venv, "python")
    selection = [argument for argument in arguments if argument != "--fast"]
    if "--fast" in arguments:
        selection += ["-m", "not slow"]
    run(python, "-m", "ruff", "check")
    run(python, "-m", "ruff", "format", "--check")
    run(python, "-m", "mypy")
    run(program(venv, "lint-imports"))
    # Without cached bytecode, every process compiles all sources again, which takes 8 s.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # One thread per process: on few cores, the thread pools of several processes mostly wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # tests/conftest.py puts groups with slow tests first; pytest-xdist would start those with the most tests first.
    run(python, "-m", "pytest", "-n", "auto", "--dist", "loadgroup", "--no-loadscope-reorder", *selection)


def package(venv: Path, index: str | None) -> None:
    """Build and check the sdist and the wheel, then run the README's example with the wheel in a new environment."""
    folder = ROOT / "build" / "package"
    shutil.rmtree(folder, ignore_errors=True)
    python = program(venv, "python")
    run(python, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    run(python, "-m", "twine", "check", "--strict", sdist, wheel)
    if problems := wheel_problems(wheel):
        sys.exit("\n".join(f"dev: {wheel.name}: {problem}" for problem in problems))
    print(f"dev: {wheel.name} has {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
    example = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert example, "README.md has no Python example"
    with tempfile.TemporaryDirectory(prefix="metalad-package-") as temporary:
        clean, empty = Path(temporary, "venv"), Path(temporary, "empty")
        empty.mkdir()
        run(sys.executable, "-m", "venv", clean)
        # pip compiles every module of torch otherwise, which takes longer than the rest of its installation.
        install(program(clean, "python"), RUNTIME_LOCK, index, "--no-compile")
        pip(program(clean, "python"), "--no-deps", "--no-index", wheel)
        # -E and -P: modules come from this environment only, not from PYTHONPATH or the working folder.
        run(program(clean, "python"), "-E", "-P", "-c", example[1], folder=empty)


def wheel_problems(wheel: Path) -> list[str]:
    """Return what is wrong with a wheel: missing files, files that belong to development only, or its size."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    problems = [f"lacks {name}" for name in WHEEL_FILES if name not in names]
    for name in names:
        folder = name.partition("/")[0]
        # metalad/pipelines/benchmark runs a benchmark for users; suites and their harness are for development.
        if folder != "metalad" and not re.fullmatch(r"metalad-[\w.]+\.dist-info", folder):
            problems.append(f"has a file outside of the package: {name}")
        elif re.search(r"/(benchmarks|harness|tests)/|suite", name):
            problems.append(f"has a file that is for development only: {name}")
    if wheel.stat().st_size >= MAX_WHEEL_BYTES:
        problems.append(f"has {wheel.stat().st_size:,} bytes, not less than {MAX_WHEEL_BYTES:,}")
    return problems


def docs(venv: Path, mkdocs_arguments: list[str]) -> None:
    """Build the documentation site; broken links and anchors are errors (`strict` in mkdocs.yml)."""
    stamp = venv / "docs.stamp"
    wanted = hashlib.sha256(DOCS_LOCK.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        run(sys.executable, "-m", "venv", "--clear", venv)
        pip(program(venv, "python"), "--no-compile", "--requirement", DOCS_LOCK)
        stamp.write_text(wanted, encoding="utf-8")
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
    run(program(venv, "python"), "-m", "mkdocs", "build", *mkdocs_arguments)


def program(venv: Path, name: str) -> Path:
    """Return the path of a program of the environment."""
    return venv / PROGRAMS / (f"{name}.exe" if os.name == "nt" else name)


def has_pip(python: Path) -> bool:
    """Return whether the environment's Python exists and has a working pip."""
    if not python.exists():
        return False
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Print a command and run it in a folder; if it fails, exit with its exit code."""
    arguments = [str(argument) for argument in command]
    print(f"dev: {shlex.join(arguments)}", flush=True)
    start = time.monotonic()
    code = subprocess.run(arguments, cwd=folder, check=False).returncode
    if code:
        print(f"dev: failed with {code}: {shlex.join(arguments)}", file=sys.stderr, flush=True)
        # A negative code is the number of a signal; shells add it to 128.
        sys.exit(code if code > 0 else 128 - code)
    print(f"dev: done in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
