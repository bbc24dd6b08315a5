import dataclasses
import json
from pathlib import Path

import pytest

from metalad.data import data_hash, read_category
from metalad.methods.patchcore import PatchCoreConfig
from metalad.methods.variation_model import VariationModelConfig
from metalad.pipelines.benchmark.plan import Plan, plan_benchmark
from metalad.pipelines.benchmark.rows import append_row
from metalad.runtime.errors import ConfigError
from tests.pipelines.benchmark.material import put_category, row_of


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    return [put_category(tmp_path / name) for name in ("bolt", "nut")]


def names(plan: Plan) -> list[str]:
    return [cell.name for cell in plan.cells]


def test_a_plan_is_the_product_of_categories_methods_and_seeds(data: list[Path]) -> None:
    plan = plan_benchmark(["padim", "patchcore"], data, seeds=2)
    assert names(plan) == [f"{c}:{m}:{s}" for c in ("bolt", "nut") for m in ("padim", "patchcore") for s in (0, 1)]
    assert plan.selected == plan.cells
    assert plan.summary() == "2 methods x 2 categories x 2 seeds = 8 cells, 8 selected"


def test_patterns_select_cells_and_the_summary_counts_seeds(data: list[Path]) -> None:
    plan = plan_benchmark(["padim", "patchcore"], data, seeds=3, only=["bolt:padim", "nut:*:1"])
    assert [cell.name for cell in plan.selected] == [
        *(f"bolt:padim:{seed}" for seed in range(3)),
        "nut:padim:1",
        "nut:patchcore:1",
    ]
    assert plan.summary().endswith("12 cells, 5 selected")
    with pytest.raises(ConfigError, match="--only 'screw:\\*' selects no cell"):
        plan_benchmark(["padim"], data, only=["screw:*"])


def test_a_setting_applies_to_every_method_that_has_it(data: list[Path]) -> None:
    plan = plan_benchmark(["padim", "variation_model"], data[:1], settings=["image_size=64", "channels=9"])
    padim, variation = (plan.configs[cell.key] for cell in plan.cells)
    assert (padim["image_size"], padim["channels"]) == ([64, 64], 9)
    assert variation["image_size"] == [64, 64]
    assert "channels" not in variation


@pytest.mark.parametrize(
    ("setting", "message"),
    [("colour=red", "none of the methods"), ("image_size", "NAME=VALUE"), ("image_size=x", "image_size")],
)
def test_an_invalid_setting_is_an_error(setting: str, message: str, data: list[Path]) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_benchmark(["padim", "variation_model"], data, settings=[setting])


def test_a_config_is_the_same_cell_as_its_settings(data: list[Path]) -> None:
    config = VariationModelConfig(image_size=(64, 64))
    plan = plan_benchmark([config], data)
    default = f"min_variation={VariationModelConfig().min_variation}"
    named = plan_benchmark(["variation_model"], data, settings=["image_size=64", default])
    assert [cell.key for cell in named.cells] == [cell.key for cell in plan.cells]
    assert names(plan) == ["bolt:variation_model:0", "nut:variation_model:0"]
    assert plan.configs[plan.cells[0].key] == json.loads(json.dumps(dataclasses.asdict(config)))


def test_one_method_with_several_settings_has_labels_with_settings(data: list[Path]) -> None:
    plan = plan_benchmark(["patchcore", PatchCoreConfig(image_size=(64, 64))], data[:1])
    assert names(plan) == ["bolt:patchcore:0", "bolt:patchcore image_size=64,64:0"]
    with pytest.raises(ConfigError, match="patchcore is given twice"):
        plan_benchmark(["patchcore", "patchcore"], data)
    with pytest.raises(ConfigError, match="patchcore is given twice"):
        plan_benchmark(["patchcore", PatchCoreConfig()], data)


@pytest.mark.parametrize(
    ("methods", "keywords", "message"),
    [
        ([], {}, "no method is given"),
        (["nonsense"], {}, "no method 'nonsense'"),
        (["padim"], {"seeds": 0}, "seeds is 0"),
    ],
)
def test_invalid_arguments_are_errors(
    methods: list[str], keywords: dict[str, object], message: str, data: list[Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_benchmark(methods, data, **keywords)  # type: ignore[arg-type]


def test_a_row_is_finished_while_images_and_settings_are_unchanged(data: list[Path], tmp_path: Path) -> None:
    plan = plan_benchmark(["padim"], data[:1], seeds=2)
    category = read_category(data[0])
    digest = data_hash((*category.train, *category.test))
    first, second = plan.cells
    append_row(tmp_path / "rows.jsonl", row_of(first, config=plan.configs[first.key], data={"all": digest}))
    other = {**plan.configs[second.key], "channels": 1}
    append_row(tmp_path / "rows.jsonl", row_of(second, config=other, data={"all": digest}))
    assert list(plan.finished_rows(tmp_path)) == [first.key]
    next((data[0] / "test" / "good").iterdir()).unlink()
    assert plan.finished_rows(tmp_path) == {}
