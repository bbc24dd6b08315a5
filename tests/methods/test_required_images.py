"""The documentation states the numbers of images, and the methods without descent, that the code has."""

import re
from pathlib import Path

import pytest

from metalad.detectors.base import FittedDetector
from metalad.methods import OWN

DOCS = Path(__file__).parents[2] / "docs"
REQUIRED = {method.name: method.load().required_images() for method in OWN}


def listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def text(page: Path) -> str:
    return " ".join(page.read_text(encoding="utf-8").split())


@pytest.mark.parametrize("page", sorted(path.stem for path in (DOCS / "methods").glob("*.md") if path.stem in REQUIRED))
def test_a_card_states_the_required_number(page: str) -> None:
    stated = re.search(r"\*\*Needs:\*\* at least (\d+) ", text(DOCS / "methods" / f"{page}.md"))
    assert stated is None or int(stated[1]) == REQUIRED[page]


def test_the_page_on_training_states_the_required_numbers() -> None:
    least, *more = sorted(set(REQUIRED.values()))
    sentence = f"At least {least} good images are needed, one of them for validation or for an out-of-fold score"
    for number in more:
        names = sorted(name for name, required in REQUIRED.items() if required == number)
        sentence += f"; at least {number} for {listed(names)}"
    assert f"{sentence}." in text(DOCS / "train.md")


def test_the_page_on_training_names_the_methods_without_descent() -> None:
    names = sorted(method.name for method in OWN if issubclass(method.load(), FittedDetector))
    assert f"Methods without gradient descent ({listed(names)}) have nothing to shorten" in text(DOCS / "train.md")
