"""What a benchmark is made of: a suite of grids, each the product of configurations, categories and seeds."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from typing import Literal

from metalad.runtime.errors import ConfigError

Protocol = Literal["default", "paper"]
ScoringName = Literal["calibrated", "raw"]
KEY_DIGITS = 12
MIN_PREFIX = 4


@dataclass(frozen=True)
class Configuration:
    """A method with settings (`NAME=VALUE`, as on the command line), and what the tables call them.

    paper: the column, or for `image` and `parameters` tables the line, that the paper gives it.
    """

    label: str
    method: str = "metal"
    settings: tuple[str, ...] = ()
    paper: str | None = None


@dataclass(frozen=True)
class Cell:
    """One job: train a configuration on a category with a seed, and evaluate it.

    category: the name of its folder, or SET/CATEGORY; None to count parameters only; nothing is trained then.
    epochs: instead of the protocol's number.
    """

    configuration: Configuration
    category: str | None
    seed: int = 0
    protocol: Protocol = "default"
    epochs: int | None = None

    @property
    def key(self) -> str:
        """A hash of what is to be done; labels do not count."""
        what = {
            "method": self.configuration.method,
            "settings": sorted(self.configuration.settings),
            "category": self.category,
            "seed": self.seed,
            "protocol": self.protocol,
            "epochs": self.epochs,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]

    @property
    def name(self) -> str:
        """What a reader calls it, such as `bottle:squares+rows:0`, with `:paper` behind it if trained as published."""
        protocol = ":paper" if self.protocol == "paper" else ""
        return f"{self.category or 'parameters'}:{self.configuration.label}:{self.seed}{protocol}"


@dataclass(frozen=True)
class Grid:
    """All cells of some configurations on some categories with some seeds; no categories: count parameters."""

    configurations: tuple[Configuration, ...]
    categories: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    protocol: Protocol = "default"
    epochs: int | None = None

    def cells(self) -> list[Cell]:
        """Return the cells, category by category."""
        categories: tuple[str | None, ...] = self.categories or (None,)
        return [
            Cell(configuration, category, seed, self.protocol, self.epochs)
            for category, configuration, seed in product(categories, self.configurations, self.seeds)
        ]


@dataclass(frozen=True)
class Suite:
    """A name, one line on it, its grids, and the table made of it.

    table: `pixel` metrics, `image` AUROC in percent, or numbers of `parameters`.
    scorings: those that the table shows, a line each.
    paper_table: the paper's table to compare with; see `metalad.pipelines.benchmark.paper`.
    whole: a category that was published with a split must have as many images; a part of it counts as absent.
    picture: each cell also draws examples of what its model makes, and they are put together in `OUT/NAME.png`.

    Raises:
        ValueError: two cells are the same, or have the same name.
    """

    name: str
    summary: str
    grids: tuple[Grid, ...]
    table: Literal["pixel", "image", "parameters"] = "pixel"
    scorings: tuple[ScoringName, ...] = ("calibrated", "raw")
    paper_table: str | None = None
    whole: bool = False
    picture: bool = False

    def __post_init__(self) -> None:
        cells = self.cells()
        for entries in ([cell.key for cell in cells], [cell.name for cell in cells]):
            twice = [entry for entry, count in Counter(entries).items() if count > 1]
            if twice:
                raise ValueError(f"suite {self.name} declares twice: {', '.join(twice)}")

    def cells(self) -> tuple[Cell, ...]:
        """Return all cells in the order of their declaration."""
        return tuple(cell for grid in self.grids for cell in grid.cells())

    def chosen(self, only: Sequence[str], protocol: Protocol | None = None) -> tuple[Cell, ...]:
        """Return the cells that any of `only` means: the beginning of a key, or a pattern for names (`bottle:*`).

        protocol: the one to train by; None: the default one, if the suite has any such cell.

        Raises:
            ConfigError: one of `only` means no cell, or there is none of the protocol.
        """
        cells = self.cells()
        there = {cell.protocol for cell in cells}
        wanted_protocol = protocol or ("default" if "default" in there else "paper")
        if wanted_protocol not in there:
            raise ConfigError(f"suite {self.name} has no cell of the protocol {wanted_protocol}; leave --protocol out")
        cells = tuple(cell for cell in cells if cell.protocol == wanted_protocol)
        for wanted in only:
            if not any(_means(wanted, cell) for cell in cells):
                raise ConfigError(
                    f"suite {self.name} has no cell {wanted!r}; give a key, its first {MIN_PREFIX} digits or more, or "
                    f"a pattern for names such as {cells[0].name!r}; `metalad benchmark {self.name} --list` shows them"
                )
        return tuple(cell for cell in cells if not only or any(_means(wanted, cell) for wanted in only))


def _means(wanted: str, cell: Cell) -> bool:
    return (len(wanted) >= MIN_PREFIX and cell.key.startswith(wanted)) or fnmatch(cell.name, wanted)
