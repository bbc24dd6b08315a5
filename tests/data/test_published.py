"""The image counts of the published data sets have the totals that the papers or their authors state."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.harness.paper import PRODUCTS, TEXTURES
from metalad.data.counting import differences
from metalad.data.finding import folders_below, folders_named
from metalad.data.published import DATA_SETS, category_named, data_set_named, plain_names
from metalad.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "categories", "totals"),
    [
        ("mvtec", 15, (3629, 467, 1258)),
        ("mvtec2", 8, (2528, 302, 379, 705)),
        ("loco", 5, (1778, 305, 575, 993)),
        ("visa", 12, (8659, 962, 1200)),
        ("btad", 3, (1799, 451, 290)),
        ("mpdd", 6, (888, 176, 282)),
        ("ksdd", 1, (347, 52)),
        ("ksdd2", 1, (2085, 246, 894, 110)),
        ("mtd", 1, (952, 392)),
        ("dagm", 10, (14000, 2100)),
        ("headct", 1, (100, 100)),
    ],
)
def test_the_image_counts_have_the_expected_sums(name: str, categories: int, totals: tuple[int, ...]) -> None:
    data_set = data_set_named(name)
    assert len(data_set.categories) == categories
    assert tuple(data_set.counts.values()) == totals


def test_the_total_counts_are_those_of_the_papers() -> None:
    def all_images(name: str) -> int:
        return sum(data_set_named(name).counts.values())

    # 8004 with 2 × 2045 private test images
    assert {name: all_images(name) for name in ("mvtec", "visa", "mpdd", "ksdd", "ksdd2", "mtd", "dagm")} == {
        "mvtec": 5354,
        "visa": 10821,
        "mpdd": 1346,
        "ksdd": 399,
        "ksdd2": 3335,
        "mtd": 1344,
        "dagm": 16100,
    }
    assert all_images("mvtec2") + 2 * 2045 == 8004


def test_all_names_are_unique() -> None:
    sets = Counter(name for data_set in DATA_SETS for name in plain_names(data_set))
    categories = Counter(name for each in DATA_SETS for category in each.categories for name in plain_names(category))
    assert [name for counter in (sets, categories) for name, times in counter.items() if times > 1 or not name] == []


def test_the_categories_of_the_paper_are_those_of_mvtec_ad() -> None:
    assert [category.name for category in data_set_named("mvtec").categories] == [*TEXTURES, *PRODUCTS]


def test_names_match_in_any_spelling() -> None:
    assert data_set_named("MVTec AD").name == "mvtec"
    assert data_set_named("KolektorSDD2").name == "ksdd2"
    with pytest.raises(ConfigError, match="unknown data set 'imagenet'; known data sets: mvtec, mvtec2"):
        data_set_named("imagenet")
    bottle = category_named("bottle")
    assert bottle is not None
    assert bottle is category_named("MVTec-AD/Bottle")
    assert [category_named(name) for name in ("visa/bottle", "other/bottle", "unicorn", "")] == [None] * 4


def test_differences_are_described_for_each_part() -> None:
    published = data_set_named("mpdd").categories[0].counts
    assert differences(published, published) == ()
    counts = {"train": 280, "test good": 40, "test abnormal": 47}
    assert differences(published, counts) == (  # type: ignore[arg-type]
        "9 of 289 train images are missing",
        "8 test good images more than the 32 published",
    )


def test_a_name_with_a_data_set_matches_only_in_the_folder_of_that_data_set(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("BTech/01", "mine/01", "MVTec AD/Metal Nut")]
    for path in paths:
        path.mkdir(parents=True)
    folders = folders_below(tmp_path)
    assert folders_named(folders, "01") == paths[:2]
    assert folders_named(folders, "btad/01") == paths[:1]
    assert folders_named(folders, "mine/01") == paths[1:2]
    assert folders_named(folders, "mvtec/metal_nut") == folders_named(folders, "metalnut") == paths[2:]
    assert folders_named(folders, "visa/01") == []
    assert folders_named(folders_below(paths[0]), "btad/01") == paths[:1]
