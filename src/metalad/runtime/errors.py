"""Errors that a user can cause: each has a one-line text that says what is wrong, where, and how to fix it.

The command line prints the line and exits with 2; a Python caller catches `MetaladError` or a subclass. A bug in
metalad is never one of these: it keeps its traceback.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


class MetaladError(Exception):
    """The base class of all errors that a user can cause.

    Attributes:
        path: the file or folder concerned, if there is one.
        reason: what is wrong, without the path; the whole message if it was not given separately.
        remedy: how to fix it, if it was given separately.
    """

    exit_code = 2

    def __init__(
        self,
        message: str | None = None,
        *,
        path: Path | None = None,
        reason: str | None = None,
        remedy: str | None = None,
    ) -> None:
        """Compose the one-line text from a message, or from `path`, `reason` and `remedy`."""
        if message is None:
            parts = ("" if path is None else f"{path}: ", reason or "", f"; {remedy}" if remedy else "")
            message = "".join(parts)
        line = " ".join(message.split())
        super().__init__(line)
        self.path, self.reason, self.remedy = path, reason or line, remedy

    def to_json(self) -> dict[str, Any]:
        """Return the error as JSON's own types, for another process; see `error_from_json`."""
        return {
            "class": f"{type(self).__module__}:{type(self).__qualname__}",
            "message": str(self),
            "path": None if self.path is None else str(self.path),
            "reason": self.reason,
            "remedy": self.remedy,
        }


class DataError(MetaladError):
    """A folder, a list, an array or a ground-truth mask cannot be used as it is."""


class ImageError(DataError):
    """One image file cannot be read, or is refused (for example a decompression bomb)."""

    def __init__(self, path: Path, reason: str, remedy: str | None = None) -> None:
        """State which file cannot be read, and why."""
        tail = f"; {remedy}" if remedy else ""
        super().__init__(f"cannot read {path}: {reason}{tail}", path=path, reason=f"{reason}{tail}", remedy=remedy)


class ConfigError(MetaladError):
    """A setting does not exist, has a wrong type, or does not fit the others."""


class ModelFileError(MetaladError):
    """A model file is damaged, unsafe, too new, or was not written by metalad."""


class RunError(MetaladError):
    """A run folder cannot be written, resumed or used for what was asked."""


def error_from_json(values: Mapping[str, Any]) -> MetaladError:
    """Rebuild an error that another process described with `MetaladError.to_json`.

    A class that cannot be imported here, such as that of a plug-in installed only there, becomes `MetaladError`.
    """
    kind = _error_class(values["class"])
    error = kind.__new__(kind)
    Exception.__init__(error, values["message"])
    error.path = None if values["path"] is None else Path(values["path"])
    error.reason, error.remedy = values["reason"], values["remedy"]
    return error


def _error_class(name: str) -> type[MetaladError]:
    module, _, qualified = name.partition(":")
    try:
        found: Any = import_module(module)
        for part in qualified.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return MetaladError
    return found if isinstance(found, type) and issubclass(found, MetaladError) else MetaladError


def printable(text: object) -> str:
    """Return a text, such as a file name, with control characters replaced, which could act on the terminal."""
    # Lone surrogates, from names that are not UTF-8, stay: they are escaped on output.
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else "?" for c in str(text))


def escaped(text: str) -> str:
    """Return a text with lone surrogates, from names that are not UTF-8, as \\udc..: text files cannot hold them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
