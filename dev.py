#!/usr/bin/env python3
"""Everything a developer needs, from a fresh machine with Python 3.11 or newer and nothing else.

python3 dev.py setup    make .venv with the locked packages, and metalad from this folder
python3 dev.py demo     the same, then `metalad demo` (what follows is passed on, such as --minutes 1)
python3 dev.py test     the same with what tests need, then ruff, mypy, lint-imports and pytest (likewise)
python3 dev.py docs     build the documentation site in build/site, in the environment .venv-docs

`--venv DIR` before the word, or METALAD_VENV in the environment, takes another environment than .venv.
"""

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 (this file is what a user with an older Python meets first)
    sys.exit("metalad needs Python 3.11 or newer; this is {}.{}".format(*sys.version_info[:2]))

ROOT = Path(__file__).resolve().parent
RUNTIME_LOCK = ROOT / "requirements.lock"
TEST_LOCK = ROOT / "requirements-test.lock"
DOCS_LOCK = ROOT / "requirements-docs.lock"
PROGRAMS = "Scripts" if os.name == "nt" else "bin"


def main() -> None:
    """Read the command line, make the environment, do what was asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--venv", type=Path, default=Path(os.environ.get("METALAD_VENV", ROOT / ".venv")))
    parser.add_argument("what", choices=("setup", "demo", "test", "docs"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to `metalad demo`, pytest or mkdocs")
    options = parser.parse_args()
    venv = options.venv.absolute()
    if options.what == "docs":
        docs(venv.with_name(f"{venv.name}-docs"), options.arguments)
        return
    prepare(venv, with_tests=options.what == "test")
    if options.what == "demo":
        run(program(venv, "metalad"), "demo", *options.arguments)
    if options.what == "test":
        test(venv, options.arguments)


def prepare(venv: Path, *, with_tests: bool) -> None:
    """Install the locked packages and metalad itself into the environment, unless that was done."""
    stamp = venv / ("metalad-test.stamp" if with_tests else "metalad-runtime.stamp")
    wanted = fingerprint()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and program(venv, "metalad").exists():
        print(f"dev: {venv} is up to date", flush=True)
        return
    python = program(venv, "python")
    if not has_pip(python):
        if venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file():
            sys.exit(f"dev: {venv} is a folder with other content, no environment; name another")
        run(sys.executable, "-m", "venv", "--clear", venv)
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install")
    run(*pip, "--requirement", TEST_LOCK if with_tests else RUNTIME_LOCK)
    # The build backend is locked too: no isolated build, which would fetch whichever is newest.
    run(*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT)
    for name in ("metalad-runtime.stamp", "metalad-test.stamp")[: 1 + with_tests]:
        (venv / name).write_text(wanted, encoding="utf-8")


def fingerprint() -> str:
    """Return a hash over what decides the environment's content: the locks, the package's metadata, its place."""
    digest = hashlib.sha256(str(ROOT).encode())
    for file in (RUNTIME_LOCK, TEST_LOCK, ROOT / "pyproject.toml"):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def test(venv: Path, pytest_arguments: list[str]) -> None:
    """Run every check, the quick ones first."""
    python = program(venv, "python")
    run(python, "-m", "ruff", "check")
    run(python, "-m", "ruff", "format", "--check")
    run(python, "-m", "mypy")
    run(program(venv, "lint-imports"))
    # A thread each: on few cores, thread pools of several processes do little but wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run(python, "-m", "pytest", "-n", "auto", "--dist", "loadfile", *pytest_arguments)


def docs(venv: Path, mkdocs_arguments: list[str]) -> None:
    """Build the documentation site; broken links and anchors are errors (`strict` in mkdocs.yml)."""
    stamp = venv / "docs.stamp"
    wanted = hashlib.sha256(DOCS_LOCK.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        run(sys.executable, "-m", "venv", "--clear", venv)
        run(program(venv, "python"), "-m", "pip", "--disable-pip-version-check", "install", "--requirement", DOCS_LOCK)
        stamp.write_text(wanted, encoding="utf-8")
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
    run(program(venv, "python"), "-m", "mkdocs", "build", *mkdocs_arguments)


def program(venv: Path, name: str) -> Path:
    """Return where a program of the environment lies."""
    return venv / PROGRAMS / (f"{name}.exe" if os.name == "nt" else name)


def has_pip(python: Path) -> bool:
    """Tell whether an environment is there and whole enough to install into."""
    if not python.exists():
        return False
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def run(*command: str | Path) -> None:
    """Print a command and run it in the project's folder; when it fails, end with its exit code."""
    words = [str(word) for word in command]
    print(f"dev: {shlex.join(words)}", flush=True)
    begun = time.monotonic()
    code = subprocess.run(words, cwd=ROOT, check=False).returncode
    if code:
        print(f"dev: failed with {code}: {shlex.join(words)}", file=sys.stderr, flush=True)
        # A negative code is a signal's number; shells add it to 128.
        sys.exit(code if code > 0 else 128 - code)
    print(f"dev: done in {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
