"""Declarations of experiments: a suite of grids, each the product of configurations, categories and seeds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from metalad.pipelines.benchmark.cells import Cell, Configuration, Protocol, select_cells
from metalad.runtime.errors import ConfigError

ScoringName = Literal["calibrated", "raw"]


@dataclass(frozen=True)
class PaperConfiguration(Configuration):
    """A configuration with published numbers.

    paper: the column of the suite's paper table; for tables `image` and `parameters` the line. None: no numbers.
    """

    paper: str | None = None


def paper_column(configuration: Configuration) -> str | None:
    """Return the column or line of the paper's table that a configuration corresponds to, if any."""
    return configuration.paper if isinstance(configuration, PaperConfiguration) else None


@dataclass(frozen=True)
class Grid:
    """All cells of some configurations on some categories with some seeds; no categories: count parameters only."""

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
    """A set of cells, and the table made from their rows.

    A cell's category is the name of its folder, or SET/CATEGORY.

    summary: one line.
    table: metrics of `pixel`s, `image` AUROC in percent, or numbers of `parameters`.
    scorings: the scorings in the table, one line each.
    paper_table: the paper's table to compare with; see `benchmarks.harness.paper`.
    whole: a category published with a split must have all its images; an incomplete copy counts as absent.
    picture: each cell also draws example images, which are combined into `OUT/NAME.png`.

    Raises:
        ValueError: two cells are equal, or have the same name.
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

    def selected(self, only: Sequence[str], protocol: Protocol | None = None) -> tuple[Cell, ...]:
        """Return the cells of a protocol that the patterns of `only` select, see `Cell.matches`; all by default.

        protocol: None: `default` if the suite has such cells, else `paper`.

        Raises:
            ConfigError: a pattern selects no cell, or the suite has no cell of the protocol.
        """
        cells = self.cells()
        protocols = {cell.protocol for cell in cells}
        wanted = protocol or ("default" if "default" in protocols else "paper")
        if wanted not in protocols:
            raise ConfigError(f"suite {self.name} has no cell of the protocol {wanted}; omit --protocol")
        return select_cells([cell for cell in cells if cell.protocol == wanted], only)
