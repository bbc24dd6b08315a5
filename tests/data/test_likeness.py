"""Images of a single color."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalad.data.likeness import is_single_color


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.booleans())
def test_one_other_value_anywhere_makes_a_second_color(height: int, width: int, seed: int, changed: bool) -> None:
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(0, 255, 3), np.uint8)
    if changed:
        image[rng.integers(height), rng.integers(width), rng.integers(3)] += 1
    assert is_single_color(image) == (not changed or height * width == 1)


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (1, 2, 3)])
def test_a_plain_image_is_of_a_single_color(color: tuple[int, int, int]) -> None:
    assert is_single_color(np.full((100, 70, 3), color, np.uint8))
