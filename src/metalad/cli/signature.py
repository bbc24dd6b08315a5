"""Options of the command line from the signature and the docstring of the public function: each is written once.

The source is parsed, not imported, so that `--help` does not import torch.
"""

import ast
import re
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import metalad
from metalad.cli.parser import one_of
from metalad.runtime import choices

NO_PARAMETERS: Mapping[str, Mapping[str, Any]] = {}
TYPES: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "Path": (Path, "PATH"),
    "int": (int, "N"),
    "float": (float, "X"),
    "str": (str, "NAME"),
}
"""The conversion of a type's texts, and the placeholder in the help."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function: its type as written, its default (None if it has none), and its description."""

    name: str
    annotation: str
    default: Any
    required: bool
    description: str


def parameters(file: str, function: str) -> tuple[Parameter, ...]:
    """Return the parameters of a function in a source file of the package, such as `pipelines/train.py`."""
    return _parameters(Path(metalad.__file__).parent / file, function)


@cache  # a process that runs many command lines reads each source once
def _parameters(path: Path, function: str) -> tuple[Parameter, ...]:
    definition = next(
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    described = _descriptions(ast.get_docstring(definition) or "")
    arguments = definition.args
    without_default: list[ast.expr | None] = [None] * (len(arguments.args) - len(arguments.defaults))
    pairs = [
        *zip(arguments.args, [*without_default, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    found: list[Parameter] = []
    for argument, default in pairs:
        annotation = "" if argument.annotation is None else ast.unparse(argument.annotation).strip("'\"")
        value = None if default is None else _value(default)
        found.append(Parameter(argument.arg, annotation, value, default is None, described.get(argument.arg, "")))
    return tuple(found)


def add_parameters(
    parser: ArgumentParser,
    file: str,
    function: str,
    *,
    positional: Collection[str] = (),
    skip: Collection[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] = NO_PARAMETERS,
) -> None:
    """Add an option for each parameter of a function, with its default, its choices and its description.

    Args:
        parser: gets the options.
        file, function: see `parameters`.
        positional: parameters that are arguments instead of options.
        skip: parameters that the command line does not have, or adds itself.
        overrides: keywords for `add_argument`, by parameter; a key `flag` names the option.
    """
    for parameter in parameters(file, function):
        if parameter.name in skip:
            continue
        keywords = _keywords(parameter) | dict(overrides.get(parameter.name, {}))
        flag = keywords.pop("flag", None)
        if parameter.name in positional:
            for name in ("dest", "default", "required"):
                keywords.pop(name, None)
            parser.add_argument(parameter.name, **keywords)
        else:
            parser.add_argument(flag or _flag(parameter), dest=parameter.name, **keywords)


def _keywords(parameter: Parameter) -> dict[str, Any]:
    text = parameter.description.replace("`", "").replace("%", "%%")
    if parameter.annotation == "bool":
        switched_off = {"action": "store_false", "help": f"do not {text}"}
        return switched_off if parameter.default else {"action": "store_true", "help": text}
    keywords: dict[str, Any] = {"default": parameter.default, "help": text}
    if parameter.required:
        keywords["required"] = True
    elif parameter.default not in (None, ()) and "default" not in text:
        keywords["help"] = f"{text}; %(default)s by default"
    names = parameter.annotation.split(" | ")
    if names[0] in vars(choices):
        texts = get_args(getattr(choices, names[0]))
        return keywords | {"type": one_of(texts), "metavar": f"{{{','.join(texts)}}}"}
    kind = next((name for name in TYPES if name in names), "str")
    convert, placeholder = TYPES[kind]
    if kind == "Path" and isinstance(parameter.default, str):
        keywords["default"] = Path(parameter.default)
    return keywords | {"type": convert, "metavar": placeholder}


def _flag(parameter: Parameter) -> str:
    name = parameter.name.replace("_", "-")
    return f"--no-{name}" if parameter.annotation == "bool" and parameter.default else f"--{name}"


def _value(default: ast.expr) -> Any:
    """Return a default that is a constant, `Path("...")`, or a constant of this package's config module."""
    if isinstance(default, ast.Call):
        return Path(ast.literal_eval(default.args[0]))
    if isinstance(default, ast.Name):
        return _constant(default.id)
    return ast.literal_eval(default)


def _constant(name: str) -> Any:
    source = (Path(metalad.__file__).parent / "pipelines" / "config.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise LookupError(name)


def _descriptions(docstring: str) -> dict[str, str]:
    """Return the texts of a docstring's section `Args`, without the last period, by parameter."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    entries = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w[\w, ]*: |\Z)", section[1] if section else "", re.M | re.S)
    return {name: " ".join(text.split()).removesuffix(".") for name, text in entries}
