"""The house: what is promised about every file, checked by reading them."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from metalad.cli.main import VERBS, build_parser

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "metalad"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CODE = sorted(
    [
        *SOURCES,
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("benchmarks/**/*.py"),
        *ROOT.glob("examples/**/*.py"),
        ROOT / "dev.py",
    ]
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def code_lines(function: Function) -> int:
    """Return the lines of a function without its docstring's."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    return lines - ((first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0)


def imported(tree: ast.AST) -> set[str]:
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return {module.partition(".")[0] for module in modules}


# Sizes


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_no_file_is_long_and_no_function_is_long(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    assert [node.name for node in functions(parsed(file)) if code_lines(node) > MAX_FUNCTION_LINES] == []


# Words


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_all_that_is_public_says_what_it_is(file: Path) -> None:
    tree = parsed(file)
    assert ast.get_docstring(tree), "the module says nothing"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    scopes: list[ast.Module | ast.ClassDef] = [tree, *classes]
    public = [
        node
        for scope in scopes
        for node in scope.body
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("file", CODE, ids=name_of)
def test_annotations_stay_types(file: Path) -> None:
    # The import would turn annotations into text, and the shapes in them could no longer be checked at run time.
    assert "__future__" not in imported(parsed(file))


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_nothing_is_unpickled(file: Path) -> None:
    tree = parsed(file)
    assert not imported(tree) & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    for call in calls:  # backbone weights come as .pth files: tensors alone may be read from them, nothing run
        assert any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords)


# Verbs


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_a_function_a_file_a_subcommand_a_test_and_a_page(verb: str) -> None:
    assert (PACKAGE / f"{verb}.py").exists() or (PACKAGE / verb / "__init__.py").exists()
    assert callable(getattr(importlib.import_module(f"metalad.pipelines.{verb}"), verb))
    assert verb in build_parser().format_help()
    tests = (ROOT / "tests" / f"test_{verb}.py", *(ROOT / "tests" / verb).glob("test_*.py"))
    assert any(test.exists() for test in tests)
    page = ROOT / "docs" / f"{verb}.md"
    assert page.exists()
    assert f"metalad {verb}" in page.read_text(encoding="utf-8")


# Floors


def test_below_the_line_there_is_no_torch() -> None:
    # The import contract covers what our files say; this covers what they and their libraries do.
    below = ["settings", "threshold", "drawing.html_report", "report", "metrics", "data", "images", "files", "errors"]
    below.append("corruption")
    script = (
        "import importlib, sys\n"
        f"for name in {below}:\n    importlib.import_module('metalad.' + name)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


# The README's tree


def readme_tree() -> set[str]:
    """Return the paths, relative to src/metalad, that the README's tree names; a folder's end in a slash."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```\w*\nsrc/metalad/[^\n]*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no fenced block whose first line is src/metalad/"
    return tree_paths(block[1].splitlines())


def tree_paths(lines: list[str]) -> set[str]:
    """Read an indented tree: a line's first word is a file, or a folder if it ends in a slash."""
    found: set[str] = set()
    above: list[tuple[int, str]] = []
    for line in filter(str.strip, lines):
        drawn = re.match(r"[\s│├└─|`+-]*", line)
        indent = drawn.end() if drawn else 0
        while above and above[-1][0] >= indent:
            above.pop()
        path = (above[-1][1] if above else "") + line[indent:].split()[0]
        found.add(path)
        if path.endswith("/"):
            above.append((indent, path))
    return found


def test_the_tree_is_read_as_it_is_drawn() -> None:
    lines = ["├── cli.py      the command line", "├── data/       samples", "│   └── sample.py", "└── errors.py"]
    assert tree_paths(lines) == {"cli.py", "data/", "data/sample.py", "errors.py"}
    assert tree_paths(["  a/  one", "    b.py  two", "  c.py"]) == {"a/", "a/b.py", "c.py"}


def test_the_readmes_tree_is_the_disk() -> None:
    drawn = readme_tree()
    top = {
        path.name + "/" * path.is_dir()
        for path in PACKAGE.iterdir()
        if path.name not in ("__init__.py", "__main__.py", "__pycache__", "py.typed")
    }
    assert {path for path in drawn if "/" not in path.rstrip("/")} == top
    # A folder may be one line; if its files are listed, each of them exists.
    missing = [path for path in drawn if not (PACKAGE / path).exists()]
    assert not missing


# The toolchain


def test_ci_runs_what_the_readme_tells_to_run() -> None:
    command = "python3 dev.py test"
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert command in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def locked(*names: str) -> dict[str, str]:
    lines = [line for name in names for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    pins = [line.partition(";")[0].strip() for line in lines if line and not line.startswith(("#", "-r "))]
    assert all("==" in pin for pin in pins), pins
    pairs = [pin.split("==") for pin in pins]
    assert len({name for name, _ in pairs}) == len(pairs), "a package is locked twice"
    return {name: version for name, version in pairs}


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", requirement)[0] for requirement in requirements}


def test_the_locks_hold_all_that_is_needed_and_nothing_of_cuda() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    runtime = locked("requirements.lock")
    both = locked("requirements.lock", "requirements-test.lock")
    needed = project["project"]["dependencies"] + project["build-system"]["requires"]
    assert requirement_names(needed) <= set(runtime)
    assert requirement_names(project["dependency-groups"]["test"]) <= set(both)
    # torch pins its own CUDA packages where it needs them; a machine without a GPU must not get gigabytes of them.
    assert not [name for name in both if name.startswith("nvidia") or name == "triton"]


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert importlib.metadata.version("metalad") == project["project"]["version"]
    assert f"## {project['project']['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
