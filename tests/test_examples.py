"""The example of a method in a package of its own: installed beside metalad, its own test passes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import metalad

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "metalad-nearest-image"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed into it: built from a copy, offline, by the locked build backend."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")],
        check=True,
        env={**os.environ, "PIP_CONFIG_FILE": os.devnull},
    )
    return folder / "site"


def run(installed: Path, *words: str) -> str:
    places = (str(installed), str(Path(metalad.__file__).parents[1]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(
        [sys.executable, "-m", *words], env=environment, cwd=installed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_metalad_lists_the_method_and_says_whose_it_is(installed: Path) -> None:
    (line,) = [line for line in run(installed, "metalad", "methods").splitlines() if "nearest_image" in line]
    assert "from the package metalad-nearest-image" in line


def test_the_examples_own_test_passes(installed: Path) -> None:
    out = run(installed, "pytest", "-W", "error", "-p", "no:cacheprovider", str(EXAMPLE / "tests"))
    assert "2 passed" in out


def test_without_the_package_there_is_no_such_method() -> None:
    done = subprocess.run([sys.executable, "-m", "metalad", "methods"], capture_output=True, text=True, check=True)
    assert "nearest_image" not in done.stdout
