"""Options from signatures and docstrings, against `inspect` on the imported functions."""

import inspect
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import metalad
from metalad.cli.signature import Parameter, add_parameters, parameters

FILES = {
    "train": "pipelines/train.py",
    "evaluate": "pipelines/evaluate.py",
    "predict": "pipelines/predict/run.py",
    "compare": "pipelines/compare.py",
    "datasets": "pipelines/datasets.py",
    "demo": "pipelines/demo.py",
    "benchmark": "pipelines/benchmark/pipeline.py",
}


@pytest.mark.parametrize("name", FILES)
def test_the_parsed_parameters_are_those_of_the_function(name: str) -> None:
    function: Callable[..., Any] = getattr(metalad, name)
    expected = {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    found = {parameter.name: parameter for parameter in parameters(FILES[name], name)}
    assert list(found) == list(expected)
    for parameter in found.values():
        default = expected[parameter.name]
        assert parameter.required == (default is inspect.Parameter.empty)
        assert parameter.required or parameter.default == default
        assert parameter.description, f"{parameter.name} is not described in the docstring of {name}"


def parsed(file: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], **keywords: Any) -> dict[str, Any]:
    monkeypatch.setattr(metalad, "__file__", str(file))
    parser = ArgumentParser()
    add_parameters(parser, file.name, "work", **keywords)
    return vars(parser.parse_args(arguments))


SOURCE = '''
def work(data: str | Path, *, count: int = 3, ratio: float | None = None, quick: bool = False, maps: bool = True,
         scoring: Scoring | None = None, out: str | Path = "there"):
    """Work.

    Args:
        data: what to read,
            on two lines.
        count: how many; 100 % at most.
        ratio: a ratio.
        quick: hurry.
        maps: write `maps`.
        scoring: which.
        out: where.

    Raises:
        ValueError: count: never described here.
    """
'''


def test_types_choices_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "work.py"
    file.write_text(SOURCE, encoding="utf-8")
    assert parsed(file, monkeypatch, ["here"], positional=("data",)) == {
        "data": Path("here"),
        "count": 3,
        "ratio": None,
        "quick": False,
        "maps": True,
        "scoring": None,
        "out": Path("there"),
    }
    given = ["here", "--count", "5", "--ratio", "0.5", "--quick", "--no-maps", "--scoring", "raw", "--out", "x"]
    found = parsed(file, monkeypatch, given, positional=("data",))
    assert list(found.values()) == [Path("here"), 5, 0.5, True, False, "raw", Path("x")]
    with pytest.raises(SystemExit):
        parsed(file, monkeypatch, ["here", "--scoring", "cooked"], positional=("data",))
    described = {parameter.name: parameter.description for parameter in _parameters(file, monkeypatch)}
    assert described["data"] == "what to read, on two lines"
    assert described["count"] == "how many; 100 % at most"


def _parameters(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[Parameter]:
    monkeypatch.setattr(metalad, "__file__", str(file))
    return list(parameters(file.name, "work"))


def test_the_help_has_descriptions_and_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "work.py"
    file.write_text(SOURCE, encoding="utf-8")
    with pytest.raises(SystemExit):
        parsed(file, monkeypatch, ["--help"], positional=("data",), skip=("ratio",))
    text = " ".join(capsys.readouterr().out.split())
    assert "how many; 100 % at most; 3 by default" in text
    assert "do not write maps" in text
    assert "--ratio" not in text
