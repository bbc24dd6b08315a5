"""Settings: frozen dataclasses with a help text per field, parsed from `name=value` texts."""

import contextlib
import dataclasses
import difflib
import numbers
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from metalad.runtime.errors import ConfigError

Config = TypeVar("Config")


def setting(default: Any, help_text: str) -> Any:
    """Return a dataclass field with a default and one line of help."""
    return dataclasses.field(default=default, metadata={"help": help_text})


def auto_size(side: int, multiple: int) -> Any:
    """Return the field `image_size` of a method whose images keep their aspect ratio.

    side: of the square that the size is derived from, in pixels; the size where no image is known. multiple: the size
    is a multiple of this many pixels.
    """
    text = "height and width that images are resized to, in pixels; auto: from the training images' own sizes"
    return dataclasses.field(default=(side, side), metadata={"help": text, "multiple": multiple})


def describe(config: type) -> list[tuple[str, str, str]]:
    """Return (name, default, help) for each setting of a config class."""
    return [
        (
            field.name,
            "auto" if "multiple" in field.metadata else _formatted(field.default),
            str(field.metadata.get("help", "")),
        )
        for field in dataclasses.fields(config)
    ]


def from_texts(config: type[Config], texts: Iterable[str]) -> Config:
    """Create a config from `name=value` texts, such as `depth=2` or `tokens=squares,rows`.

    Raises:
        ConfigError: a text without `=`, an unknown name, or a value of the wrong type.
    """
    hints = get_type_hints(config)
    values: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"setting {text!r} has no value; write NAME=VALUE")
        _check_name(config, name, hints)
        values[name] = _parse(name, value, hints[name])
    return config(**values)


def from_values(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Create a config from Python values; a text is parsed as on the command line.

    A list becomes a tuple, and one number for a pair of them, such as `image_size=320`, stands for both.

    Raises:
        ConfigError: an unknown name, or a value of the wrong type.
    """
    hints = get_type_hints(config)
    converted: dict[str, Any] = {}
    for name, value in values.items():
        _check_name(config, name, hints)
        is_text = isinstance(value, str) and hints[name] is not str
        converted[name] = _parse(name, value, hints[name]) if is_text else _typed(name, value, hints[name])
    return config(**converted)


def from_json(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Create a config from the JSON form of its `dataclasses.asdict`, in which tuples are lists.

    Raises:
        ConfigError: an unknown name.
    """
    hints = get_type_hints(config)
    for name in values:
        _check_name(config, name, hints)
    return config(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Check an argument with a fixed set of values, which are those of the type `Literal[...]` given as `choices`.

    Raises:
        ConfigError: the value is not one of the choices; the text names a similar one, or all.
    """
    if value not in get_args(choices):
        raise ConfigError(f"{name} is {value!r}; {similar_or_all(value, get_args(choices))}")


def similar_or_all(value: Any, choices: Iterable[str]) -> str:
    """Return a question that suggests the choices similar to a misspelt value, or a list of all choices."""
    known = list(choices)
    similar = difflib.get_close_matches(str(value).lower(), known)
    return f"did you mean {' or '.join(similar)}?" if similar else f"it must be one of {', '.join(known)}"


def _hint(value: Any, choices: Sequence[Any]) -> str:
    """Return similar choices, and all of them."""
    hint = similar_or_all(value, choices)
    return f"{hint} It can be {', '.join(map(str, choices))}" if hint.endswith("?") else hint


def rate(name: str, value: Any) -> float:
    """Return a false-alarm rate: a number in (0, 1), or a text such as "5%", which is 0.05.

    Raises:
        ConfigError: not a number, or not between 0 and 1.
    """
    number_ = number(name, value)
    if not 0 < number_ < 1:
        raise ConfigError(f"{name} is {value}; it is a probability between 0 and 1, such as 0.01 or 1%")
    return number_


def score(name: str, value: Any) -> float:
    """Return an argument as a number; a text in percent is refused, because it is a rate.

    Raises:
        ConfigError: not a number, or in percent.
    """
    if isinstance(value, str) and value.strip().endswith("%"):
        raise ConfigError(f"{name} is {value!r}; it is a score, not a rate: a rate is given as false_alarms")
    return number(name, value)


def number(name: str, value: Any) -> float:
    """Return an argument as a number; a text may end with "%", which divides by 100.

    Raises:
        ConfigError: not a number.
    """
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float_of(value)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"{name} is {value!r}; it must be a number")


def whole_number(name: str, value: Any) -> int:
    """Return an argument as an integer.

    Raises:
        ConfigError: not a whole number.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    raise ConfigError(f"{name} is {value!r}; it must be a whole number")


def float_of(text: str) -> float:
    """Convert a text to a number; "5%" is 0.05.

    Raises:
        ValueError: not a number.
    """
    text = text.strip()
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def check_choices(config: Any) -> None:
    """Check that each field with a fixed set of values holds one of them.

    Raises:
        ConfigError: a value is not one of the choices.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        is_tuple = get_origin(hint) is tuple
        choices = get_args(hint)[0] if is_tuple else hint
        if get_origin(choices) is Literal and not set(value if is_tuple else (value,)) <= set(get_args(choices)):
            wrong = next(part for part in (value if is_tuple else (value,)) if part not in get_args(choices))
            raise ConfigError(f"setting {name}={_formatted(value)!r}: {_hint(wrong, get_args(choices))}")


def _check_name(config: type, name: str, hints: Mapping[str, Any]) -> None:
    if name not in hints:
        similar = difflib.get_close_matches(name.replace("-", "_"), hints)
        hint = f"did you mean {' or '.join(similar)}?" if similar else f"available: {', '.join(sorted(hints))}"
        raise ConfigError(f"{config.__name__} has no setting {name!r}; {hint}")


def _typed(name: str, value: Any, hint: Any) -> Any:
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        fixed = arguments[-1] is not Ellipsis
        parts = list(value) if isinstance(value, list | tuple) else [value]
        parts = parts * len(arguments) if fixed and len(parts) == 1 else parts
        if fixed and len(parts) != len(arguments):
            raise ConfigError(f"setting {name}={value!r}: expected {_expected(hint)}")
        return tuple(_typed(name, part, arguments[0]) for part in parts)
    if get_origin(hint) in (Union, types.UnionType):
        return None if value is None else _typed(name, value, arguments[0])
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, Path):
        return str(value)
    wrong = isinstance(hint, type) and (not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)))
    if wrong:
        raise ConfigError(f"setting {name}={value!r}: expected {_expected(hint)}")
    return value


def _parse(name: str, text: str, hint: Any) -> Any:
    try:
        return _value(text.strip(), hint)
    except ValueError:
        if get_origin(hint) is Literal:
            raise ConfigError(f"setting {name}={text!r}: {_hint(text, get_args(hint))}") from None
        raise ConfigError(f"setting {name}={text!r}: expected {_expected(hint)}") from None


def _value(text: str, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if text not in arguments:
            raise ValueError(text)
        return text
    if origin is tuple:
        parts = [part for part in text.replace("x", ",").split(",") if part] if arguments[0] is int else text.split(",")
        if arguments[-1] is not Ellipsis:
            parts = parts * len(arguments) if len(parts) == 1 else parts
            if len(parts) != len(arguments):
                raise ValueError(text)
        return tuple(_value(part, arguments[0]) for part in parts)
    if origin in (Union, types.UnionType):
        return None if text.lower() == "none" else _value(text, arguments[0])
    if hint is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _invalid(text)
    return float_of(text) if hint is float else hint(text)


def _invalid(text: str) -> bool:
    raise ValueError(text)


def _expected(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a comma-separated list, each {_expected(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} values of {_expected(arguments[0])}, or one for all"
    if origin in (Union, types.UnionType):
        return f"{_expected(arguments[0])}, or none"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


def _formatted(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
