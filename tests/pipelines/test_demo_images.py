"""The folder of the photographs that ship with the package."""

import metalad
from metalad.data import read_category


def test_the_folder_is_a_category() -> None:
    assert read_category(metalad.demo_images()).name == "cookie"
    assert (metalad.demo_images() / "LICENSE.txt").is_file()
