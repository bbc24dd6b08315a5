"""The scripts of studies and timings, and the separation of the harness from the installed package."""

import importlib
import re
from pathlib import Path

import pytest

from benchmarks.harness.command import build_parser

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "benchmarks" / "README.md"
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if not path.stem.startswith("__"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_imported_and_describes_its_command(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert callable(module.main)
    assert f"python -m benchmarks.{name}" in str(module.__doc__)
    assert f"`{name}`" in README.read_text(encoding="utf-8")


def test_the_readme_lists_all_options() -> None:
    documented = re.findall(r"^\| `(--[\w-]+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    options = {action.option_strings[-1] for action in build_parser()._actions if action.option_strings}
    assert sorted(documented) == sorted(options - {"--help"})


def test_the_installed_package_does_not_use_the_harness() -> None:
    sources = (ROOT / "src" / "metalad").rglob("*.py")
    pattern = re.compile(r"^\s*(from|import) benchmarks\b|[\"']benchmarks\.", re.MULTILINE)
    assert [path for path in sources if pattern.search(path.read_text(encoding="utf-8"))] == []
