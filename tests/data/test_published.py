"""The declared numbers add up to what the papers and their authors print."""

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
def test_the_numbers_of_images_add_up(name: str, categories: int, totals: tuple[int, ...]) -> None:
    data_set = data_set_named(name)
    assert len(data_set.categories) == categories
    assert tuple(data_set.counts.values()) == totals


def test_totals_are_those_that_are_printed() -> None:
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


def test_no_name_means_two_things() -> None:
    sets = Counter(name for data_set in DATA_SETS for name in plain_names(data_set))
    categories = Counter(name for each in DATA_SETS for category in each.categories for name in plain_names(category))
    assert [name for counter in (sets, categories) for name, times in counter.items() if times > 1 or not name] == []


def test_the_papers_categories_are_those_of_mvtec() -> None:
    assert [category.name for category in data_set_named("mvtec").categories] == [*TEXTURES, *PRODUCTS]


def test_names_are_found_in_any_spelling() -> None:
    assert data_set_named("MVTec AD").name == "mvtec"
    assert data_set_named("KolektorSDD2").name == "ksdd2"
    with pytest.raises(ConfigError, match="no data set 'imagenet' is known by name; there are: mvtec, mvtec2"):
        data_set_named("imagenet")
    bottle = category_named("bottle")
    assert bottle is not None
    assert bottle is category_named("MVTec-AD/Bottle")
    assert [category_named(name) for name in ("visa/bottle", "other/bottle", "unicorn", "")] == [None] * 4


def test_differences_are_told_part_by_part() -> None:
    published = data_set_named("mpdd").categories[0].counts
    assert differences(published, published) == ()
    found = {"train": 280, "test good": 40, "test abnormal": 47}
    assert differences(published, found) == (  # type: ignore[arg-type]
        "9 of 289 train images are missing",
        "8 test good images more than the 32 published",
    )


def test_a_name_with_its_set_is_found_below_that_set_alone(tmp_path: Path) -> None:
    places = [tmp_path / place for place in ("BTech/01", "mine/01", "MVTec AD/Metal Nut")]
    for place in places:
        place.mkdir(parents=True)
    folders = folders_below(tmp_path)
    assert folders_named(folders, "01") == places[:2]
    assert folders_named(folders, "btad/01") == places[:1]
    assert folders_named(folders, "mine/01") == places[1:2]
    assert folders_named(folders, "mvtec/metal_nut") == folders_named(folders, "metalnut") == places[2:]
    assert folders_named(folders, "visa/01") == []
    assert folders_named(folders_below(places[0]), "btad/01") == places[:1]
