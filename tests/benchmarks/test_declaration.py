from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.declaration import Grid, PaperConfiguration, Suite
from metalad.pipelines.benchmark.cells import Cell, Configuration
from metalad.runtime.errors import ConfigError
from tests.benchmarks.material import SUITE

CELL = SUITE.cells()[0]


def test_a_grid_is_the_product_of_configurations_categories_and_seeds() -> None:
    assert [cell.name for cell in SUITE.cells()] == ["cookie:one:0", "cookie:one:1", "cookie:two:0", "cookie:two:1"]


def test_a_key_depends_on_everything_but_labels() -> None:
    configuration = CELL.configuration
    relabelled = PaperConfiguration("other", "metal", configuration.settings[::-1], "Ours")
    assert replace(CELL, configuration=relabelled).key == CELL.key
    others = [
        replace(CELL, configuration=replace(configuration, method="other")),
        replace(CELL, configuration=replace(configuration, settings=("depth=2",))),
        replace(CELL, category="bottle"),
        replace(CELL, category=None),
        replace(CELL, seed=7),
        replace(CELL, protocol="paper"),
        replace(CELL, epochs=None),
    ]
    assert len({CELL.key, *(cell.key for cell in others)}) == 8


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), unique=True, max_size=6))
def test_different_settings_have_different_keys(pairs: list[tuple[str, str]]) -> None:
    assert len({Cell(Configuration("x", "metal", pair), "c").key for pair in pairs}) == len(
        {tuple(sorted(p)) for p in pairs}
    )


def test_a_cell_declared_twice_is_an_error() -> None:
    grid = Grid((Configuration("one", "metal"),), ("bottle",))
    with pytest.raises(ValueError, match="declares twice"):
        Suite("twice", "", (grid, grid))
    with pytest.raises(ValueError, match="declares twice: bottle:one:0"):
        Suite("names", "", (grid, replace(grid, epochs=3)))


def test_the_default_protocol_is_selected_if_the_suite_has_it() -> None:
    grid = Grid((Configuration("one", "metal"),), ("bottle",), seeds=(0, 1))
    both = Suite("both", "", (grid, replace(grid, protocol="paper")))
    assert [cell.name for cell in both.selected(())] == ["bottle:one:0", "bottle:one:1"]
    assert [cell.name for cell in both.selected((), "paper")] == ["bottle:one:0:paper", "bottle:one:1:paper"]
    published = Suite("published", "", (replace(grid, protocol="paper"),))
    assert published.selected(()) == published.selected((), "paper") == published.cells()
    with pytest.raises(ConfigError, match="no cell of the protocol default"):
        published.selected((), "default")


def test_cells_are_selected_by_key_and_by_name() -> None:
    cells = SUITE.cells()
    assert SUITE.selected(()) == cells
    assert SUITE.selected([cells[2].key[:6], "*:one:1"]) == (cells[1], cells[2])
    assert SUITE.selected(["cookie:one"]) == cells[:2], "all seeds"
    with pytest.raises(ConfigError, match="'bottle:\\*' selects no cell"):
        SUITE.selected(["cookie:*", "bottle:*"])
    with pytest.raises(ConfigError, match="selects no cell"):
        SUITE.selected([cells[0].key[:2]])
