"""The public API: its names, lazy imports, docstrings, and the errors for names that do not exist."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import metalad

FUNCTIONS = {
    "benchmark",
    "compare",
    "datasets",
    "demo",
    "demo_images",
    "evaluate",
    "export",
    "fit",
    "list_methods",
    "load",
    "predict",
    "serve",
    "train",
    "watch",
}
CLASSES = {
    "BenchmarkReport",
    "Comparison",
    "DetectorConfig",
    "ExportReport",
    "LoggedPrediction",
    "MethodInfo",
    "Model",
    "Region",
    "Report",
    "Result",
    "SavedPrediction",
    "SettingInfo",
    "TrainingStep",
}
ERRORS = {"ConfigError", "DataError", "ImageError", "MetaladError", "ModelFileError", "RunError"}
NAMES = {*FUNCTIONS, *CLASSES, *ERRORS, "__version__"}


def run(code: str) -> str:
    """Run code in a new process, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(metalad.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_the_documented_ones() -> None:
    assert set(metalad.__all__) == NAMES
    assert len(metalad.__all__) == len(NAMES)
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in sorted(NAMES - {"__version__"}) if f"`{name}" not in page and f".{name}" not in page] == []


@pytest.mark.parametrize("name", sorted(FUNCTIONS | CLASSES | ERRORS))
def test_every_name_resolves_to_an_object_with_a_docstring(name: str) -> None:
    value = getattr(metalad, name)
    assert value is getattr(metalad, name)
    assert inspect.isclass(value) == (name not in FUNCTIONS)
    assert callable(value)
    assert value.__name__ == name
    text = inspect.getdoc(value)
    assert text
    assert not text.startswith(f"{name}(")  # the docstring that dataclasses make
    if name in CLASSES:
        public = [member for member, _ in inspect.getmembers(value) if not member.startswith("_")]
        for member in public:
            attribute = inspect.getattr_static(value, member)
            if isinstance(attribute, property | classmethod) or inspect.isfunction(attribute):
                assert inspect.getdoc(attribute), f"{name}.{member}"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_argument_of_a_public_function_is_documented_and_typed(name: str) -> None:
    signature = inspect.signature(getattr(metalad, name))
    assert signature.return_annotation is not inspect.Signature.empty
    text = inspect.getdoc(getattr(metalad, name)) or ""
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        if len(signature.parameters) > 2:
            assert parameter.name in text, f"{name}: {parameter.name}"


def test_errors_have_one_base_class() -> None:
    for name in ERRORS:
        assert issubclass(getattr(metalad, name), metalad.MetaladError)
    assert issubclass(metalad.ImageError, metalad.DataError)


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert metalad.__version__ == version("metalad")


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    code = """
import sys
import metalad
dir(metalad), metalad.__all__, metalad.__version__, metalad.MetaladError, metalad.ImageError
print(sorted({"torch", "numpy", "PIL", "matplotlib", "scipy"} & set(sys.modules)))
metalad.load, metalad.predict
print(sorted({"torch", "matplotlib", "scipy"} & set(sys.modules)))
metalad.train
print("torch" in sys.modules)
"""
    assert run(code) == "[]\n[]\nTrue\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    for name in ("nothing", "Detector", "read_model", "_private"):
        with pytest.raises(AttributeError, match=f"module 'metalad' has no attribute '{name}'"):
            getattr(metalad, name)
        assert not hasattr(metalad, name)
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from metalad import nothing")


def test_dir_lists_the_public_names() -> None:
    assert dir(metalad) == sorted(metalad.__all__)
    assert run("import metalad; print(dir(metalad) == sorted(metalad.__all__))") == "True\n"


def test_a_star_import_gives_all_names() -> None:
    code = "from metalad import *; import metalad; print(all(name in globals() for name in metalad.__all__))"
    assert run(code) == "True\n"


def test_a_function_is_not_hidden_by_its_module() -> None:
    """`metalad.train` is the function, also after the module of that name in `pipelines` is imported."""
    code = """
import metalad, metalad.pipelines.train, metalad.pipelines.predict.run, metalad.pipelines.benchmark
print([type(getattr(metalad, name)).__name__ for name in ("train", "predict", "benchmark")])
"""
    assert run(code) == f"{['function'] * 3}\n"
