from collections import Counter
from dataclasses import dataclass

import pytest

from metalad.methods import method_named, methods
from metalad.pipelines.benchmark.declaration import Suite
from metalad.pipelines.benchmark.paper import PRODUCTS, TABLES, TEXTURES, column_of
from metalad.pipelines.benchmark.suites import SEEDS, suite_named, suites
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import from_texts

EVERY = list(suites().values())


@pytest.mark.parametrize("suite", EVERY, ids=lambda suite: suite.name)
def test_every_configuration_can_be_built_and_has_its_place_in_the_paper(suite: Suite) -> None:
    for configuration in {cell.configuration for cell in suite.cells()}:
        from_texts(method_named(configuration.method).load_config(), configuration.settings)
        if configuration.paper is not None:
            assert suite.paper_table is not None
            assert configuration.paper in TABLES[suite.paper_table].columns


def test_the_default_suite_is_what_was_promised() -> None:
    names = [cell.name for cell in suite_named("default").cells()]
    assert names == [
        f"{category}:{method}:{seed}"
        for category in ("bottle", "magnetic_tile", "metal_plate", "cookie")
        for method in ("metal", "metal_features")
        for seed in range(3)
    ]


def test_table_3_holds_the_six_configurations_and_the_literal_mask() -> None:
    cells = [cell for cell in suite_named("table-3").cells() if cell.category == "bottle"]
    assert {cell.configuration.paper for cell in cells} == set(TABLES["Table 3"].columns)
    assert Counter((cell.seed, "mask=zero-logit" in cell.configuration.settings) for cell in cells) == {
        (seed, literal): 2 * (2 if literal else 6) for seed in SEEDS for literal in (True, False)
    }
    assert {cell.protocol for cell in cells} == {"default", "paper"}
    depths = {cell.category: cell.configuration.settings[-1] for cell in suite_named("table-3").cells()}
    assert depths == dict.fromkeys(PRODUCTS, "depth=1") | dict.fromkeys(TEXTURES, "depth=2")


def test_every_method_with_a_column_has_a_place_in_tables_4_and_5() -> None:
    """What the paper compares itself with, and is here, is measured beside it."""
    for name in ("table-4", "table-5"):
        labels = {cell.configuration.label for cell in suite_named(name).cells()}
        paper = f"Table {name[-1]}"
        missing = {method for method in methods() if method != "metal" and column_of(paper, method)} - labels
        assert not missing


def test_gans_are_counted_and_compared_at_their_published_width() -> None:
    for name in ("table-4", "table-6"):
        cells = [cell for cell in suite_named(name).cells() if cell.configuration.label == "f_anogan"]
        published = [cell for cell in cells if cell.protocol == "paper" or name == "table-6"]
        assert published
        assert all(cell.configuration.settings == ("width=64",) for cell in published)


def test_what_two_suites_ask_for_is_done_once() -> None:
    def keys(name: str) -> set[str]:
        return {cell.key for cell in suite_named(name).cells()}

    assert len(keys("ablation-mask") & keys("table-3")) == 2
    assert len(keys("loss") & keys("table-3")) == 1
    assert len(keys("leak") & keys("table-3")) == 3


def test_an_unknown_suite_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no suite 'nonsense'; there are: default, methods, table-3"):
        suite_named("nonsense")


# The paper


def test_the_paper_is_copied_without_a_slip() -> None:
    """The means that the paper prints check the lines; under VT-ADL it repeats the line above, under Ours Table 3's."""
    misprinted = {("Table 4", "VT-ADL"): 0.711, ("Table 4", "Ours"): 0.846}
    for name in ("Table 3", "Table 4"):
        table = TABLES[name]
        assert list(table.lines) == [*TEXTURES, *PRODUCTS, "mean"]
        assert {len(line) for line in table.lines.values()} == {len(table.columns)}
        for index, column in enumerate(table.columns):
            mean = sum(line[index] for line in list(table.lines.values())[:-1]) / 15
            printed = misprinted.get((name, column), table.lines["mean"][index])
            assert printed == pytest.approx(mean, abs=0.0011), (name, column)


@dataclass(frozen=True)
class Spelling:
    method: str
    column: str | None


@pytest.mark.parametrize(
    "case",
    [
        Spelling("metal", "Ours"),
        Spelling("f-anogan", "f-anoGan"),
        Spelling("vt_adl", "VT-ADL"),
        Spelling("padim", None),
    ],
    ids=lambda case: case.method,
)
def test_a_method_finds_its_column(case: Spelling) -> None:
    assert column_of("Table 4", case.method) == case.column
