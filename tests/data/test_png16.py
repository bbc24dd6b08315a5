"""16-bit PNG files: read back by Pillow, which checks the checksums of all chunks."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from metalad.data.png16 import BAND, png16_parts

Array = np.ndarray


@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)), st.booleans())
def test_values_and_comment_are_read_back(gray: Array, marked: bool) -> None:
    content = b"".join(png16_parts(gray, "a comment" if marked else None))
    with Image.open(io.BytesIO(content)) as image:
        image.verify()
    with Image.open(io.BytesIO(content)) as image:
        assert image.info.get("Comment") == ("a comment" if marked else None)
        np.testing.assert_array_equal(np.array(image), gray)


def test_a_high_picture_is_compressed_in_bands() -> None:
    gray = np.random.default_rng(0).integers(0, 65536, (3 * BAND + 1, 300), np.uint16)
    parts = list(png16_parts(gray))
    assert max(map(len, parts)) < gray.nbytes / 2
    with Image.open(io.BytesIO(b"".join(parts))) as image:
        np.testing.assert_array_equal(np.array(image), gray)


def test_an_array_that_is_not_contiguous_is_written_in_its_own_order() -> None:
    gray = np.arange(600, dtype=np.uint16).reshape(20, 30).T[:, ::2]
    with Image.open(io.BytesIO(b"".join(png16_parts(gray)))) as image:
        np.testing.assert_array_equal(np.array(image), gray)
