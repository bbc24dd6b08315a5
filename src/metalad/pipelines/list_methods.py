"""List the methods and their settings."""

from dataclasses import dataclass

from metalad.methods import Method, method_named, methods
from metalad.runtime.settings import describe


@dataclass(frozen=True)
class SettingInfo:
    """One setting of a method: its name, its default as a text, and one line of help."""

    name: str
    default: str
    help: str


@dataclass(frozen=True)
class MethodInfo:
    """A method: its name, one line on it, its settings, and why it cannot be exported (empty if it can)."""

    name: str
    summary: str
    settings: tuple[SettingInfo, ...]
    not_exportable: str = ""


def list_methods(name: str | None = None) -> tuple[MethodInfo, ...]:
    """Return all methods, those of installed plug-ins included, or the one of a name.

    Raises:
        ConfigError: no such method, or two installed methods have one name.
    """
    found = methods().values() if name is None else (method_named(name),)
    return tuple(map(_info, found))


def _info(method: Method) -> MethodInfo:
    settings = tuple(SettingInfo(*entry) for entry in describe(method.load_config()))
    return MethodInfo(method.name, method.summary, settings, method.load().not_exportable)
