"""The picture of a suite: its example images are selected by rule, and every run writes it."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.command import build_parser, run_command
from benchmarks.harness.declaration import Grid, Suite
from benchmarks.harness.examples import GAP, median_images
from benchmarks.harness.figure import HEADINGS, PAGE, WIDTHS, compose, in_columns
from benchmarks.harness.paper import PRODUCTS, TEXTURES
from benchmarks.harness.suite_run import run_suite
from benchmarks.harness.suites import TINY, suite_named
from metalad.data.images import read_image, read_mask, write_image
from metalad.pipelines.benchmark.cells import Configuration
from metalad.pipelines.benchmark.rows import read_rows
from metalad.results.report import EvaluatedImage
from tests.pipelines.benchmark.material import put_category
from tests.tiny import tiny_category

SUITE = Suite(
    "grid",
    "a picture",
    (Grid((Configuration("tiny", "metal", TINY),), ("cookie", "nonsense", "unicorn"), epochs=1),),
    picture=True,
)


# Which images


@given(st.lists(st.tuples(st.sampled_from(["good", "a", "b"]), st.floats(0, 9)), max_size=12))
def test_for_each_defect_type_the_image_of_median_score_is_shown(found: list[tuple[str, float]]) -> None:
    images = [
        EvaluatedImage(f"{i:02}", kind, kind != "good", score, score, False) for i, (kind, score) in enumerate(found)
    ]
    selected = median_images(images)
    assert [images[i].defect for i in selected] == sorted({kind for kind, _ in found} - {"good"})
    for index in selected:
        scores = [verdict.score for verdict in images if verdict.defect == images[index].defect]
        below = sum(score < images[index].score for score in scores)
        above = sum(score > images[index].score for score in scores)
        assert below <= (len(scores) - 1) // 2
        assert above <= len(scores) // 2


def test_the_suite_has_every_category_once() -> None:
    cells = suite_named("figure-9").cells()
    assert [cell.category for cell in cells] == [*PRODUCTS, *TEXTURES]
    assert {cell.protocol for cell in cells} == {"default"}
    shared = {cell.key for cell in suite_named("table-4").cells()}
    assert all(cell.key in shared for cell in cells)


# The layout


@given(st.lists(st.integers(1, 12), min_size=1, max_size=15))
def test_columns_keep_the_order_and_approximate_the_shape_of_a_page(heights: list[int]) -> None:
    blocks = [np.full((100 * height, 960, 3), index, np.uint8) for index, height in enumerate(heights)]
    columns = in_columns(blocks)
    assert [block[0, 0, 0] for column in columns for block in column] == list(range(len(blocks)))
    assert all(columns)

    def deviation(columns: list[list[np.ndarray]]) -> float:
        tallest = max(sum(len(block) for block in column) for column in columns)
        return abs(math.log(tallest / (960 * len(columns)) / PAGE))

    assert deviation(columns) <= min(deviation([blocks]), deviation([[block] for block in blocks])) + 1e-9


def test_absent_categories_are_listed_and_without_strips_there_is_no_picture(tmp_path: Path) -> None:
    assert compose(tmp_path / "grid.png", SUITE, {}, ["a"]) is None
    strip = tmp_path / "strip.png"
    write_image(strip, np.full((50, sum(WIDTHS) + GAP * (len(WIDTHS) + 1), 3), 7, np.uint8))
    lengths = []
    for absent in ([], ["unicorn"] * 60):
        drawn = compose(tmp_path / "grid.png", SUITE, {"one": strip}, absent)
        assert drawn is not None
        picture = read_image(drawn)
        lengths.append(len(picture))
        assert ((picture == 7).all(-1).sum(1) == picture.shape[1]).sum() == 50
    assert lengths[1] > lengths[0]


# The whole picture


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figure")
    tiny_category(folder / "data" / "cookie", train=4, good=2, defective=3)
    put_category(folder / "data" / "nonsense")
    return folder


def test_the_picture_contains_the_images_of_the_categories(out: Path) -> None:
    outcome = run_suite(SUITE, out / "data", out=out / "out", threads=1, device="cpu")
    assert outcome.failed == ()
    assert outcome.picture == out / "out" / "grid.png"
    picture = read_image(outcome.picture)
    assert picture.shape[1] % (sum(WIDTHS) + GAP * (len(WIDTHS) + 1)) == 0
    for cell in SUITE.cells()[:2]:
        strip = read_image(out / "out" / "runs" / "grid" / f"{cell.key}.png")
        assert rows_of(strip, picture) == 1
    # The noise images are small and are not resized: image and ground truth are equal pixel by pixel.
    lefts = np.cumsum([GAP, *(width + GAP for width in WIDTHS)])
    shown = strip[GAP:, lefts[1] : lefts[1] + 40][:32]
    images = {path.stem: read_image(path) for path in (out / "data" / "nonsense" / "test" / "hole").iterdir()}
    (name,) = [name for name, image in images.items() if np.array_equal(image, shown)]
    truth = read_mask(out / "data" / "nonsense" / "ground_truth" / "hole" / f"{name}_mask.png")
    drawn_truth = strip[GAP:, lefts[2] : lefts[2] + 40][:32]
    np.testing.assert_array_equal(drawn_truth, 255 * np.repeat(truth[..., None], 3, 2))
    for index, heading in enumerate(HEADINGS[3:], 3):
        part = strip[GAP : GAP + 32, lefts[index] : lefts[index] + 40]
        assert part.std() > 0, heading


def rows_of(part: np.ndarray, whole: np.ndarray) -> int:
    """Count the positions of a part in a picture with the same columns."""
    width, found = part.shape[1], 0
    for left in range(0, whole.shape[1] - width + 1, width):
        column = whole[:, left : left + width]
        starts = np.flatnonzero((column[:, :, :] == part[GAP + 1]).all((1, 2))) - GAP - 1
        found += sum(np.array_equal(column[top : top + len(part)], part) for top in starts if top >= 0)
    return found


def test_a_cell_is_done_when_its_row_and_its_strip_exist(out: Path) -> None:
    first = run_suite(SUITE, out / "data", out=out / "out", threads=1, device="cpu")
    before = (out / "out" / "grid.png").read_bytes()
    (out / "out" / "grid.png").unlink()
    again = run_suite(SUITE, out / "data", out=out / "out", threads=1, device="cpu")
    assert (again.done, len(again.done_before)) == ((), 2)
    assert again.picture is not None
    assert again.picture.read_bytes() == before
    assert [folder.category for _, folder in again.absent] == ["unicorn"]
    cell = SUITE.cells()[1]
    (out / "out" / "runs" / "grid" / f"{cell.key}.png").unlink()
    third = run_suite(SUITE, out / "data", out=out / "out", threads=1, device="cpu")
    assert [row.key for row in third.done] == [cell.key]
    assert len(read_rows(first.results)) == 3
    assert (out / "out" / "grid.png").read_bytes() == before  # the same seed, the same bits
    assert third.to_json()["picture"] == str(out / "out" / "grid.png")


def test_other_suites_have_no_picture(tmp_path: Path) -> None:
    outcome = run_suite("table-6", out=tmp_path, only=["*variation_model*"], threads=1, device="cpu")
    assert outcome.picture is None
    assert not list(tmp_path.rglob("*.png"))
    shutil.rmtree(tmp_path / "runs")
    options = build_parser().parse_args(["table-6", "--list", "--out", str(tmp_path)])
    assert "done" in run_command(options).text
