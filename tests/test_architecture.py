"""Rules for every source file, the public API, the packages, and the tools, checked by reading the files."""

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import metalad
from metalad.cli.main import COMMANDS, build_parser

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


def is_overload(node: Function | ast.ClassDef) -> bool:
    return any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)


def code_lines(function: Function) -> int:
    """Return the number of lines of a function without its docstring."""
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


# Docstrings and imports


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_all_that_is_public_has_a_docstring(file: Path) -> None:
    tree = parsed(file)
    assert ast.get_docstring(tree), "the module has no docstring"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    scopes: list[ast.Module | ast.ClassDef] = [tree, *classes]
    public = [
        node
        for scope in scopes
        for node in scope.body
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if not ast.get_docstring(node) and not is_overload(node)] == []


@pytest.mark.parametrize("file", CODE, ids=name_of)
def test_annotations_are_evaluated(file: Path) -> None:
    # With that import, annotations would be text, and the shapes in them could not be checked at run time.
    assert "__future__" not in imported(parsed(file))


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_no_module_reads_pickles(file: Path) -> None:
    tree = parsed(file)
    assert not imported(tree) & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    for call in calls:  # backbone weights come as .pth files; only tensors may be read from them
        assert any(keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in call.keywords)


# The public API and the commands

FUNCTION_OF_COMMAND = {name: name for name in COMMANDS} | {"methods": "list_methods"}
FUNCTIONS = sorted(name for name in metalad.__all__ if inspect.isfunction(getattr(metalad, name)))


def test_every_command_is_a_public_function() -> None:
    assert set(FUNCTION_OF_COMMAND.values()) <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_in_a_tested_module_of_pipelines(name: str) -> None:
    """The module has the name of the function, or of the one that it belongs to."""
    package, pipelines, module = getattr(metalad, name).__module__.split(".")[:3]
    assert (package, pipelines) == ("metalad", "pipelines")
    assert module in FUNCTIONS
    tests = ROOT / "tests" / "pipelines"
    assert (tests / f"test_{module}.py").exists() or any((tests / module).glob("test_*.py"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_a_subcommand_with_a_page(command: str) -> None:
    assert f"\n    {command} " in build_parser().format_help()
    page = (ROOT / "docs" / f"{command}.md").read_text(encoding="utf-8")
    assert f"metalad {command}" in page


# Packages


def test_the_lower_packages_import_no_torch() -> None:
    """lint-imports checks the imports of this package; this test includes those of its dependencies."""
    lower = ("results", "visualization", "data", "runtime")
    modules = [
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for name in lower
        for file in sorted((PACKAGE / name).rglob("*.py"))
        if file.name != "__init__.py"
    ]
    assert len(modules) > 20
    script = (
        "import importlib, sys\n"
        f"for name in {modules}:\n    importlib.import_module(name)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def documented_tree() -> set[str]:
    """Return the paths, relative to src/metalad, in the tree of docs/architecture.md; folders end in a slash."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"^```\w*\nsrc/metalad/[^\n]*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block, "docs/architecture.md has no fenced block whose first line is src/metalad/"
    return tree_paths(block[1].splitlines())


def tree_paths(lines: list[str]) -> set[str]:
    """Return the paths of a tree drawn with lines; the first word of an entry is a file, or a folder with a slash."""
    paths: set[str] = set()
    parents: list[tuple[int, str]] = []
    for line in lines:
        entry = re.match(r"([\s│]*)[├└]── (\S+)", line)
        if entry is None:  # an entry's description continues
            continue
        indent = len(entry[1])
        while parents and parents[-1][0] >= indent:
            parents.pop()
        path = (parents[-1][1] if parents else "") + entry[2]
        paths.add(path)
        if path.endswith("/"):
            parents.append((indent, path))
    return paths


def test_a_tree_is_parsed() -> None:
    lines = ["├── cli.py      the command line", "│               and more", "├── data/       samples"]
    lines += ["│   └── sample.py", "└── errors.py"]
    assert tree_paths(lines) == {"cli.py", "data/", "data/sample.py", "errors.py"}


def test_the_documented_tree_is_complete() -> None:
    paths = documented_tree()
    top = {
        path.name + "/" * path.is_dir()
        for path in PACKAGE.iterdir()
        if path.name not in ("__main__.py", "__pycache__", "py.typed")
    }
    assert {path for path in paths if "/" not in path.rstrip("/")} == top
    # The files of a folder may be omitted; those that are listed exist.
    assert not [path for path in paths if not (PACKAGE / path).exists()]


# Tools


def test_ci_runs_the_test_command_of_the_readme() -> None:
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


def test_the_locks_contain_all_requirements_and_no_cuda() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    runtime = locked("requirements.lock")
    both = locked("requirements.lock", "requirements-test.lock")
    needed = project["project"]["dependencies"] + project["build-system"]["requires"]
    assert requirement_names(needed) <= set(runtime)
    assert requirement_names(project["dependency-groups"]["test"]) <= set(both)
    # torch requires its own CUDA packages where it needs them; a machine without a GPU must not download gigabytes.
    assert not [name for name in both if name.startswith("nvidia") or name == "triton"]


def test_the_version_is_that_of_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert importlib.metadata.version("metalad") == project["project"]["version"]
    assert f"## {project['project']['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
