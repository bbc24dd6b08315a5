"""Errors: one-line texts, their parts, and errors that another process describes as JSON."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalad.runtime.errors import (
    ConfigError,
    DataError,
    ImageError,
    MetaladError,
    ModelFileError,
    RunError,
    error_from_json,
    printable,
)

FILE = Path("line/a.png")


class PlugInError(MetaladError):
    """An error class as a plug-in may have: its constructor takes other arguments."""

    def __init__(self, camera: int) -> None:
        super().__init__(path=FILE, reason=f"camera {camera} is off", remedy="turn it on")


class Cell:
    class NestedError(DataError):
        """An error class inside a class."""


def transferred(error: MetaladError) -> MetaladError:
    """Return the error as another process reconstructs it."""
    return error_from_json(json.loads(json.dumps(error.to_json())))


def parts(error: MetaladError) -> tuple[object, ...]:
    return type(error), str(error), error.path, error.reason, error.remedy


@pytest.mark.parametrize(
    ("error", "message", "path", "reason", "remedy"),
    [
        (MetaladError("no such folder;\n give another"), "no such folder; give another", None, None, None),
        (RunError("is in use", path=FILE), "is in use", FILE, None, None),
        (ConfigError(reason="too large", remedy="use 3"), "too large; use 3", None, "too large", "use 3"),
        (ModelFileError(path=FILE, reason="damaged"), "line/a.png: damaged", FILE, "damaged", None),
        (ImageError(FILE, "truncated"), "cannot read line/a.png: truncated", FILE, "truncated", None),
        (
            ImageError(FILE, "truncated", "copy it again"),
            "cannot read line/a.png: truncated; copy it again",
            FILE,
            "truncated; copy it again",
            "copy it again",
        ),
        (PlugInError(3), "line/a.png: camera 3 is off; turn it on", FILE, "camera 3 is off", "turn it on"),
    ],
)
def test_an_error_has_one_line_a_path_a_reason_and_a_remedy(
    error: MetaladError, message: str, path: Path | None, reason: str | None, remedy: str | None
) -> None:
    """Without a separate reason, the message is the reason."""
    assert parts(error)[1:] == (message, path, reason or message, remedy)
    assert error.exit_code == 2


@pytest.mark.parametrize(
    "error",
    [
        MetaladError("no such folder"),
        ConfigError(reason="too large", remedy="use 3"),
        DataError("no images", path=FILE),
        ImageError(FILE, "truncated", "copy it again"),
        ModelFileError(path=FILE, reason="damaged"),
        RunError("is in use"),
        PlugInError(3),
        Cell.NestedError("no images"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_another_process_has_the_same_class_and_parts(error: MetaladError) -> None:
    assert parts(transferred(error)) == parts(error)


@pytest.mark.parametrize(
    "name",
    [
        "no_such_package.errors:CameraError",
        "metalad.runtime.errors:NoSuchError",
        "metalad.runtime.errors:MetaladError.nothing",
        "metalad.runtime.errors:printable",
        "metalad.runtime.errors:Any",
        "builtins:ValueError",
        f"{__name__}:Cell",
    ],
)
def test_a_class_that_is_unknown_here_becomes_the_base_class(name: str) -> None:
    error = error_from_json({**PlugInError(3).to_json(), "class": name})
    assert parts(error) == (MetaladError, *parts(PlugInError(3))[1:])


def test_a_local_class_becomes_the_base_class() -> None:
    class LocalError(RunError):
        pass

    assert parts(transferred(LocalError("is in use"))) == (MetaladError, *parts(RunError("is in use"))[1:])


@given(st.text())
def test_a_message_is_one_line(text: str) -> None:
    for error in (MetaladError(text), MetaladError(path=FILE, reason=text, remedy=text)):
        assert len(str(error).splitlines()) <= 1


@given(st.text(st.characters()))
def test_printable_text_has_no_control_characters_and_the_same_length(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert all(character.isprintable() or "\ud800" <= character <= "\udfff" for character in shown)


def test_bytes_of_a_file_name_that_is_not_utf_8_stay() -> None:
    assert printable("caf\udce9\x1b.png") == "caf\udce9?.png"
