"""Data sets by name: a complete copy is reported as whole, and the faults of another are listed."""

import json
import re
from pathlib import Path

import pytest

from metalad.cli.main import main
from metalad.data.published import DATA_SETS
from metalad.pipelines.datasets import DataSetCopy, datasets
from metalad.runtime.errors import ConfigError, DataError
from tests.data.folders import put_image, put_mask, put_text
from tests.data.trees import TREES


def put_connector(root: Path, train: int = 128, good: int = 30, abnormal: int = 14, masks: int = 14) -> Path:
    """Write a category of MPDD, the smallest of all published ones."""
    for folder, count in (("train/good", train), ("test/good", good), ("test/parts_mismatch", abnormal)):
        for number in range(count):
            put_image(root / folder / f"{number:03}.png", number, (8, 8))
    for number in range(masks):
        put_mask(root / "ground_truth/parts_mismatch" / f"{number:03}_mask.png", (8, 8))
    return root


def check(name: str, root: Path) -> DataSetCopy:
    (copy,) = datasets(name, root)
    return copy


def test_a_complete_copy_is_whole(tmp_path: Path) -> None:
    put_connector(tmp_path / "a" / "MPDD" / "connector", train=3)
    path = put_connector(tmp_path / "b" / "MPDD" / "connector")
    connector = check("mpdd", tmp_path).copies[3]
    assert (connector.state, connector.path, connector.faults) == ("whole", path, ())
    assert connector.found == {"train": 128, "test good": 30, "test abnormal": 14}


def test_missing_and_additional_images_are_listed(tmp_path: Path) -> None:
    put_connector(tmp_path / "connector", train=120, good=31, masks=12)
    copy = check("mpdd", tmp_path)
    assert [one.state for one in copy.copies] == ["absent"] * 3 + ["partial"] + ["absent"] * 2
    assert copy.copies[3].faults == (
        "8 of 128 train images are missing",
        "1 test good images more than the 30 published",
        "2 of 14 anomalous test images have no mask, such as parts_mismatch/012.png",
    )
    assert not copy.is_whole
    assert copy.copies[0].faults == ("no folder of this name",)


def test_an_unreadable_folder_is_reported(tmp_path: Path) -> None:
    put_image(tmp_path / "tubes" / "photo.png")
    put_text(tmp_path / "connector" / "train" / "good" / "note.txt", "")
    copies = check("mpdd", tmp_path).copies
    assert [copy.state for copy in copies[3:]] == ["unreadable", "absent", "unreadable"]
    assert "no images in" in copies[3].faults[0]
    assert "no folders or lists that say which are good" in copies[5].faults[0]


@pytest.mark.parametrize("name", TREES)
def test_the_parts_of_every_layout_are_counted(tmp_path: Path, name: str) -> None:
    tree = TREES[name]
    root = tmp_path / "anything"
    tree.put(root)
    (found,) = (copy for copy in check(name, root).copies if copy.path)
    train, validation, good, abnormal, left_out = tree.counts
    every = {
        "train": train,
        "validation": validation,
        "test good": good,
        "test abnormal": abnormal,
        "train abnormal": left_out,
        "good": train + validation + good,
        "abnormal": abnormal + left_out,
    }
    assert found.found == {part: every[part] for part in found.found}
    assert (found.state, found.path) == ("partial", root / tree.category)
    assert not any("mask" in fault for fault in found.faults)


def test_a_folder_below_one_of_the_data_sets_name_is_preferred(tmp_path: Path) -> None:
    put_connector(tmp_path / "a" / "01")
    TREES["btad"].put(tmp_path / "b" / "btad")
    (tmp_path / "b" / "btad" / "03").rename(tmp_path / "b" / "btad" / "01")
    assert check("btad", tmp_path).copies[0].path == tmp_path / "b" / "btad" / "01"


def test_all_data_sets_or_one_are_listed() -> None:
    every = datasets()
    assert tuple(copy.data_set for copy in every) == DATA_SETS
    assert all(copy.copies == () for copy in every)
    assert [copy.data_set.name for copy in datasets("VisA")] == ["visa"]


def test_impossible_arguments_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which data set is to be checked"):
        datasets(None, tmp_path)
    with pytest.raises(ConfigError, match="unknown data set 'unicorn'"):
        datasets("unicorn", tmp_path)
    with pytest.raises(DataError, match="no folder"):
        datasets("mvtec", tmp_path / "nowhere")


def test_the_documentation_lists_the_declared_data_sets() -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[:4] for line in page.splitlines() if re.match(r"\| `\w+` \| ", line)]
    assert rows == [
        [
            f"| `{data_set.name}`",
            data_set.title,
            str(len(data_set.categories)),
            ", ".join(f"{part} {count:,}" for part, count in data_set.counts.items()),
        ]
        for data_set in DATA_SETS
    ]


# The command line


def test_the_command_lists_categories_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets"]) == 0
    shown = capsys.readouterr().out
    assert "mvtec: MVTec AD (Bergmann et al." in shown
    assert "  bottle      train 209, test good 20, test abnormal 63\n" in shown
    assert "magnetic_tile  good 952, abnormal 392" in shown
    assert main(["datasets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == [data_set.name for data_set in DATA_SETS]
    assert listed[0]["categories"][5] == {
        "name": "bottle",
        "published": {"train": 209, "test good": 20, "test abnormal": 63},
    }


def test_the_exit_code_is_1_for_an_incomplete_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_text(tmp_path / "data" / "labels.csv", "id,haemorrhage\n" + "".join(f"{n},{n % 2}\n" for n in range(200)))
    for number in range(200):
        put_image(tmp_path / "data" / "images" / f"{number}.png", number, (8, 8))
    assert main(["datasets", "headct", "--data", str(tmp_path / "data")]) == 0
    assert "whole: good 100 of 100, abnormal 100 of 100 in" in capsys.readouterr().out
    put_connector(tmp_path / "connector", train=3)
    assert main(["datasets", "mpdd", "--data", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "partial: train 3 of 128, test good 30 of 30" in shown
    assert "125 of 128 train images are missing" in shown
    assert "0 of 6 whole, 1 partial, 0 unreadable, 5 absent" in shown
    assert main(["datasets", "mpdd", "--data", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["whole"], found["categories"][3]["state"]) == (False, "partial")
    assert main(["datasets", "--data", str(tmp_path)]) == 2
    assert "give its name" in capsys.readouterr().err


# Real images


def test_bottle_is_whole_and_missing_images_of_others_are_counted(shared_data: Path) -> None:
    copies = {copy.category: copy for copy in check("mvtec", shared_data).copies}
    assert copies["bottle"].state == "whole"
    assert copies["hazelnut"].faults == (
        "341 of 391 train images are missing",
        "38 of 40 test good images are missing",
        "62 of 70 test abnormal images are missing",
    )
    assert copies["transistor"].state == "partial"
    present = {folder.name for folder in shared_data.glob("*/*") if folder.is_dir()}
    assert {name for name, copy in copies.items() if copy.state != "absent"} == copies.keys() & present


def test_data_sets_of_other_layouts_are_compared(shared_data: Path) -> None:
    assert check("headct", shared_data).is_whole
    assert check("mpdd", shared_data).copies[4].state == "whole"
    assert check("mtd", shared_data).copies[0].faults == (
        "432 of 952 good images are missing",
        "192 of 392 abnormal images are missing",
    )
