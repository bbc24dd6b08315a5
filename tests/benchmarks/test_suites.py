from collections import Counter
from dataclasses import dataclass

import pytest

from benchmarks.harness.declaration import Suite, paper_column
from benchmarks.harness.paper import PRODUCTS, TABLES, TEXTURES, column_of
from benchmarks.harness.suites import SEEDS, suite_named, suites
from metalad.methods import OWN, Method, method_named, methods
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import from_texts

EVERY = list(suites().values())


@pytest.mark.parametrize("suite", EVERY, ids=lambda suite: suite.name)
def test_every_configuration_is_valid_and_has_an_existing_column_of_the_paper(suite: Suite) -> None:
    for configuration in {cell.configuration for cell in suite.cells()}:
        from_texts(method_named(configuration.method).load_config(), configuration.settings)
        column = paper_column(configuration)
        if column is not None:
            assert suite.paper_table is not None
            assert column in TABLES[suite.paper_table].columns


def test_the_default_suite_compares_both_main_methods_on_four_categories() -> None:
    names = [cell.name for cell in suite_named("default").cells()]
    assert names == [
        f"{category}:{method}:{seed}"
        for category in ("bottle", "magnetic_tile", "metal_plate", "cookie")
        for method in ("metal", "metal_features")
        for seed in range(3)
    ]


def test_table_3_has_six_configurations_and_the_mask_as_printed() -> None:
    cells = [cell for cell in suite_named("table-3").cells() if cell.category == "bottle"]
    assert {paper_column(cell.configuration) for cell in cells} == set(TABLES["Table 3"].columns)
    assert Counter((cell.seed, "mask=zero-logit" in cell.configuration.settings) for cell in cells) == {
        (seed, literal): 2 * (2 if literal else 6) for seed in SEEDS for literal in (True, False)
    }
    assert {cell.protocol for cell in cells} == {"default", "paper"}
    depths = {cell.category: cell.configuration.settings[-1] for cell in suite_named("table-3").cells()}
    assert depths == dict.fromkeys(PRODUCTS, "depth=1") | dict.fromkeys(TEXTURES, "depth=2")


def test_every_method_with_a_column_is_in_tables_4_and_5() -> None:
    for name in ("table-4", "table-5"):
        labels = {cell.configuration.label for cell in suite_named(name).cells()}
        paper = f"Table {name[-1]}"
        missing = {method for method in methods() if method != "metal" and column_of(paper, method)} - labels
        assert not missing


def test_an_installed_plug_in_joins_no_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in = Method("mine", "a plug-in", "package:Mine")
    registered = {**{each.name: each for each in OWN}, "mine": plug_in}
    monkeypatch.setattr("benchmarks.harness.suites.methods", lambda: registered, raising=False)
    assert not [
        suite.name
        for suite in suites().values()
        for grid in suite.grids
        if "mine" in {each.method for each in grid.configurations}
    ]


def test_gans_have_their_published_width_in_the_papers_tables() -> None:
    for name in ("table-4", "table-6"):
        cells = [cell for cell in suite_named(name).cells() if cell.configuration.label == "f_anogan"]
        published = [cell for cell in cells if cell.protocol == "paper" or name == "table-6"]
        assert published
        assert all(cell.configuration.settings == ("width=64",) for cell in published)


def test_suites_share_cells() -> None:
    def keys(name: str) -> set[str]:
        return {cell.key for cell in suite_named(name).cells()}

    assert len(keys("ablation-mask") & keys("table-3")) == 2
    assert len(keys("loss") & keys("table-3")) == 1
    assert len(keys("leak") & keys("table-3")) == 3


def test_the_error_for_an_unknown_suite_lists_the_suites() -> None:
    with pytest.raises(ConfigError, match="no suite 'nonsense'; there are: default, rivals, methods, table-3"):
        suite_named("nonsense")


# The paper


def test_the_papers_numbers_agree_with_its_printed_means() -> None:
    """Two printed means are wrong: VT-ADL repeats the line above, Ours repeats Table 3."""
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
def test_a_method_has_its_column(case: Spelling) -> None:
    assert column_of("Table 4", case.method) == case.column
