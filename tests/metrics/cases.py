"""Scores with many ties and awkward numbers, and small images of them."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

Array = np.ndarray[Any, np.dtype[Any]]
Image = tuple[Array, Array]

AWKWARD = {
    np.float32: [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 1.0, 1.0000001, -1.0, 1e38, -1e38],
    np.float64: [0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1.0, 1.0000000000000002, -1.0, 8e307, -8e307],
}


@st.composite
def ranked(draw: st.DrawFn) -> tuple[Array, Array]:
    """Scores of either precision and labels of both classes."""
    kind = draw(st.sampled_from([np.float32, np.float64]))
    width = 32 if kind is np.float32 else 64
    number = st.sampled_from(AWKWARD[kind]) | st.floats(-1e30, 1e30, width=32).map(float)
    pool = draw(st.lists(number, min_size=1, max_size=12))
    count = draw(st.integers(2, 60))
    scores = np.array(draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count)), dtype=f"f{width // 8}")
    labels = draw(arrays.arrays(bool, count))
    labels[:2] = [False, True]
    return scores, labels


@st.composite
def image(draw: st.DrawFn) -> Image:
    """A small map with ties, and a mask."""
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    number = st.sampled_from(AWKWARD[np.float32]) | st.floats(-1e30, 1e30, width=32)
    pool = draw(st.lists(number, min_size=1, max_size=15))
    anomaly_map = draw(arrays.arrays(np.float32, shape, elements=st.sampled_from(pool), fill=st.nothing()))
    return anomaly_map, draw(arrays.arrays(bool, shape, fill=st.nothing()))


@st.composite
def images(draw: st.DrawFn) -> list[Image]:
    """A few images of different sizes that hold normal and abnormal pixels."""
    both = np.array([[draw(st.sampled_from(AWKWARD[np.float32])), 1.0]], np.float32), np.array([[True, False]])
    return [*draw(st.lists(image(), max_size=3)), both]


def pooled(several: list[Image]) -> tuple[Array, Array]:
    """All pixels of all images as one list of scores and labels."""
    return np.concatenate([m.ravel() for m, _ in several]), np.concatenate([mask.ravel() for _, mask in several])
