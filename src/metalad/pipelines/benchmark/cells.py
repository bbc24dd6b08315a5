"""Benchmark cells: one method with its settings, on one category, with one seed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from metalad.runtime.choices import Protocol as Protocol
from metalad.runtime.errors import ConfigError

KEY_DIGITS = 12
MIN_PREFIX = 4


@dataclass(frozen=True)
class Configuration:
    """A method with settings (`NAME=VALUE`, as on the command line), and its label in tables and cell names."""

    label: str
    method: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One training of a configuration on a category with a seed, and its evaluation.

    category: the category's name; None: nothing is trained, only the parameters are counted.
    epochs: instead of the protocol's number.
    """

    configuration: Configuration
    category: str | None
    seed: int = 0
    protocol: Protocol = "default"
    epochs: int | None = None

    @property
    def key(self) -> str:
        """A hash of method, settings, category, seed, protocol and epochs; the label is not part of it."""
        values = {
            "method": self.configuration.method,
            "settings": sorted(self.configuration.settings),
            "category": self.category,
            "seed": self.seed,
            "protocol": self.protocol,
            "epochs": self.epochs,
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]

    @property
    def name(self) -> str:
        """The readable name, such as `bottle:patchcore:0`; `:paper` is appended for the paper's protocol."""
        protocol = ":paper" if self.protocol == "paper" else ""
        return f"{self._name_without_seed}:{self.seed}{protocol}"

    @property
    def _name_without_seed(self) -> str:
        return f"{self.category or 'parameters'}:{self.configuration.label}"

    def matches(self, pattern: str) -> bool:
        """Return whether a pattern selects this cell.

        A pattern is the beginning of a key (at least 4 digits), or a shell pattern for the name with or without the
        seed: `bottle:*`, `bottle:patchcore:0`, or `bottle:patchcore` for all seeds.
        """
        if len(pattern) >= MIN_PREFIX and self.key.startswith(pattern):
            return True
        return fnmatchcase(self.name, pattern) or fnmatchcase(self._name_without_seed, pattern)


def select_cells(cells: Sequence[Cell], only: Sequence[str]) -> tuple[Cell, ...]:
    """Return the cells that any pattern of `only` selects, in order; all cells if there is no pattern.

    Raises:
        ConfigError: a pattern selects no cell.
    """
    for pattern in only:
        if not any(cell.matches(pattern) for cell in cells):
            example = f" such as {cells[0].name!r}" if cells else ""
            raise ConfigError(
                f"--only {pattern!r} selects no cell; give a key, its first {MIN_PREFIX} digits or more, or a pattern "
                f"for names{example}; --list prints them"
            )
    return tuple(cell for cell in cells if not only or any(cell.matches(pattern) for pattern in only))
