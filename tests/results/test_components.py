"""Connected components against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from metalad.results.components import Components


def check(mask: np.ndarray) -> None:
    labels, count = ndimage.label(mask)
    found = Components.of(mask)
    np.testing.assert_array_equal(found.labels, labels - 1)
    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in ndimage.find_objects(labels)]
    assert [tuple(box) for box in found.boxes] == boxes
    np.testing.assert_array_equal(found.areas, np.bincount(labels.ravel(), minlength=count + 1)[1:])
    values = np.random.default_rng(0).random(mask.shape).astype(np.float32)
    expected = ndimage.maximum(values, labels, np.arange(1, count + 1)) if count else []
    np.testing.assert_array_equal(found.maxima(values), np.array(expected, np.float32))


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_small_mask(mask: np.ndarray) -> None:
    check(mask)


@pytest.mark.parametrize("fraction", [0.3, 0.59, 0.9])
def test_noise_near_the_percolation_threshold_has_large_components(fraction: float) -> None:
    check(np.random.default_rng(1).random((150, 211)) < fraction)


def test_a_spiral_is_one_component() -> None:
    mask = np.zeros((101, 101), bool)
    for ring in range(0, 50, 2):
        mask[ring, max(0, ring - 2) : 101 - ring] = mask[ring : 101 - ring, 100 - ring] = True
        mask[100 - ring, ring : 101 - ring] = mask[ring + 2 : 101 - ring, ring] = True
    check(mask)
    assert len(Components.of(mask).areas) == 1
