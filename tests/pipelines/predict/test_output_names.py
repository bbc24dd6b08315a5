"""Names of outputs: unique, short enough, in no conflict with folders, and never those of existing files."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalad.pipelines.predict import output_names as module
from metalad.pipelines.predict.output_names import OutputNames, shortened

PARTS = st.sampled_from(
    ["a", "A", "a-2", "a.png", "a.jpg", "é", "e\u0301", "x" * 255, "x" * 300, "ü" * 200, "\udcff" * 260]
)
WANTED = st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), max_size=12)
NOWHERE = Path("/nowhere")


@given(WANTED)
def test_names_are_unique_short_enough_and_free_of_conflicts(wanted: list[str]) -> None:
    names = OutputNames(NOWHERE)
    found = [names.add(name) for name in wanted]
    files = [
        unicodedata.normalize("NFC", f"{name}{suffix}").casefold() for name in found for suffix in (".png", ".jpg")
    ]
    folders = {"/".join(file.split("/")[:count]) for file in files for count in range(1, file.count("/") + 1)}
    assert len(set(files)) == len(files)
    assert not folders & set(files)
    assert all(len(os.fsencode(part)) <= 255 for name in found for part in f"{name}.png".split("/"))


def test_a_folder_named_like_a_picture_gets_another_name() -> None:
    names, long = OutputNames(NOWHERE), "x" * 300
    for folder in ("a", long):
        image = names.add(folder)
        assert not names.add(f"{image}.png/b").startswith(f"{image}.png/")
        assert names.add(f"{folder}.jpg").count("/") == 0


@pytest.mark.parametrize("depth", [3, 15, 40])
def test_a_path_is_never_longer_than_the_system_allows(depth: int) -> None:
    out = Path("/" + "/".join(["o" * 100] * 5))
    name = OutputNames(out).add("/".join(["d" * 120] * depth))
    assert len(os.fsencode(out / "overlays" / name)) + 4 < os.pathconf("/", "PC_PATH_MAX")
    assert ("/" in name) == (depth < 29)


def test_short_names_are_kept() -> None:
    names, longest = OutputNames(NOWHERE), "x" * 251
    found = [names.add(name) for name in ("a/x", "a/x", "a/X", "b/x", longest)]
    assert found == ["a/x", "a/x-2", "a/X-3", "b/x", longest]


def test_a_long_name_is_cut_and_ends_with_a_hash_of_the_whole() -> None:
    one, two = shortened("x" * 300 + "1", 100), shortened("x" * 300 + "2", 100)
    assert one != two
    assert {len(one), len(two)} == {100}
    assert one.startswith("x" * 87 + "-")
    assert shortened("é" * 51, 101) == shortened("é" * 51, 101)
    assert len(os.fsencode(shortened("é" * 60, 101))) <= 101


def test_a_shorter_limit_of_the_file_system_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_limits", lambda _: (143, 4095))
    name = OutputNames(NOWHERE).add(f"{'d' * 200}/{'x' * 200}")
    assert [len(part) for part in f"{name}.png".split("/")] == [143, 143]


def test_existing_files_are_never_replaced(tmp_path: Path) -> None:
    for name in ("maps/x.png", "overlays/y.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    names = OutputNames(tmp_path)
    assert [names.add(name) for name in ("x", "y", "z")] == ["x-2", "y-2", "z"]
