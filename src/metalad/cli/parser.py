"""The parser of the command line: a misspelt command, option or value gets a suggestion and the command's usage."""

import difflib
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import number, similar_or_all

NUMBER = re.compile(r"-\.?\d")


class Parser(ArgumentParser):
    """An `ArgumentParser` that refuses unknown options by itself, and suggests similar ones."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Namespace, list[str]]:  # type: ignore[override]
        """Parse as the base class does; arguments that are left over are an error, with this parser's usage."""
        self._given = list(args) if args is not None else []
        parsed, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return parsed, left

    def error(self, message: str) -> NoReturn:
        """Print the usage and one line, and exit with 2; a misspelt option is the line if there is one."""
        super().error("; ".join(self._unknown_options()) or message)

    def _unknown_options(self) -> Iterable[str]:
        known = self._option_string_actions
        for text in self._given:
            if text == "--":
                return
            name = text.partition("=")[0]
            if name.startswith("-") and len(name) > 1 and name not in known and not NUMBER.match(name):
                yield unknown_option(name, known)


def unknown_option(name: str, known: Iterable[str]) -> str:
    """Return one line about an option that does not exist, with similar ones."""
    by_text = {option.lstrip("-"): option for option in known if option.startswith("--")}
    similar = difflib.get_close_matches(name.lstrip("-").replace("_", "-").lower(), by_text)
    hint = f"did you mean {' or '.join(by_text[text] for text in similar)}?" if similar else "--help lists all"
    return f"there is no option {name}; {hint}"


def check_command(parser: Parser, arguments: Sequence[str], commands: Iterable[str]) -> None:
    """Exit with the usage and a suggestion if the first argument that is not an option is no command."""
    wanted = next((text for text in arguments if not text.startswith("-")), None)
    if wanted is not None and wanted not in (known := list(commands)):
        parser.error(f"there is no command {wanted!r}; {similar_or_all(wanted, known)}")


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """Return a conversion for `add_argument` that accepts these texts, and suggests one for a misspelt text."""

    def convert(text: str) -> str:
        if text not in choices:
            raise ArgumentTypeError(f"{text!r} is not possible; {similar_or_all(text, choices)}")
        return text

    return convert


def score(text: str) -> float:
    """Convert the text of a score, which is no rate, for `add_argument`; its range is not checked."""
    if text.strip().endswith("%"):
        raise ArgumentTypeError(f"{text!r} is a rate, not a score; did you mean --false-alarms {text}?")
    try:
        return number("it", text)
    except ConfigError as error:
        raise ArgumentTypeError(str(error)) from None


def false_alarm_rate(text: str) -> float:
    """Convert the text of a false-alarm rate, such as 0.05 or 5%, for `add_argument`; its range is not checked."""
    try:
        return number("it", text)
    except ConfigError as error:
        raise ArgumentTypeError(str(error)) from None
