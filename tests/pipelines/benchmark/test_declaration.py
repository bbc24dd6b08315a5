from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalad.pipelines.benchmark.declaration import Cell, Configuration, Grid, Suite
from metalad.runtime.errors import ConfigError
from tests.pipelines.benchmark.material import SUITE

CELL = SUITE.cells()[0]


def test_a_suite_is_the_product_of_its_parts() -> None:
    assert [cell.name for cell in SUITE.cells()] == ["cookie:one:0", "cookie:one:1", "cookie:two:0", "cookie:two:1"]


def test_labels_do_not_change_a_key_and_all_else_does() -> None:
    configuration = CELL.configuration
    relabelled = replace(configuration, label="other", paper="Ours", settings=configuration.settings[::-1])
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
def test_no_two_settings_share_a_key(pairs: list[tuple[str, str]]) -> None:
    assert len({Cell(Configuration("x", settings=pair), "c").key for pair in pairs}) == len(
        {tuple(sorted(p)) for p in pairs}
    )


def test_a_cell_is_not_declared_twice() -> None:
    grid = Grid((Configuration("one"),), ("bottle",))
    with pytest.raises(ValueError, match="declares twice"):
        Suite("twice", "", (grid, grid))
    with pytest.raises(ValueError, match="declares twice: bottle:one:0"):
        Suite("names", "", (grid, replace(grid, epochs=3)))


def test_a_protocol_is_chosen_the_default_one_first() -> None:
    grid = Grid((Configuration("one"),), ("bottle",), seeds=(0, 1))
    both = Suite("both", "", (grid, replace(grid, protocol="paper")))
    assert [cell.name for cell in both.chosen(())] == ["bottle:one:0", "bottle:one:1"]
    assert [cell.name for cell in both.chosen((), "paper")] == ["bottle:one:0:paper", "bottle:one:1:paper"]
    published = Suite("published", "", (replace(grid, protocol="paper"),))
    assert published.chosen(()) == published.chosen((), "paper") == published.cells()
    with pytest.raises(ConfigError, match="no cell of the protocol default"):
        published.chosen((), "default")


def test_cells_are_chosen_by_key_and_by_name() -> None:
    cells = SUITE.cells()
    assert SUITE.chosen(()) == cells
    assert SUITE.chosen([cells[2].key[:6], "*:one:1"]) == (cells[1], cells[2])
    with pytest.raises(ConfigError, match="has no cell 'bottle:\\*'"):
        SUITE.chosen(["cookie:*", "bottle:*"])
    with pytest.raises(ConfigError, match="has no cell"):
        SUITE.chosen([cells[0].key[:2]])
