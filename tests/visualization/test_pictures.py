import base64
import io

import numpy as np
import pytest
from PIL import Image

from metalad.visualization.pictures import data_uri, thumbnail


def decoded(uri: str) -> Image.Image:
    head, body = uri.split(",", 1)
    picture = Image.open(io.BytesIO(base64.b64decode(body, validate=True)))
    assert head == f"data:image/{str(picture.format).lower()};base64"
    picture.load()
    return picture


def photo(height: int, width: int) -> np.ndarray:
    # A smooth color gradient plus noise, as in a camera image; PNG compresses it poorly.
    ramp = np.linspace(40, 200, width)[np.newaxis, :, np.newaxis] * np.ones((height, 1, 3))
    return (ramp + np.random.default_rng(0).normal(0, 6, ramp.shape)).clip(0, 255).astype(np.uint8)


def test_a_mask_is_encoded_losslessly() -> None:
    mask = np.zeros((120, 90), np.uint8)
    mask[30:60, 20:50] = 255
    picture = decoded(data_uri(thumbnail(mask)))
    assert picture.format == "PNG"
    np.testing.assert_array_equal(np.asarray(picture), mask)


def test_a_photograph_is_encoded_as_a_small_jpeg_with_a_small_error() -> None:
    image = photo(200, 256)
    uri = data_uri(thumbnail(image))
    picture = decoded(uri)
    assert picture.format == "JPEG"
    assert np.abs(np.asarray(picture, np.float64) - image).mean() < 6
    assert len(uri) < 40_000


@pytest.mark.parametrize(("shape", "size"), [((900, 450), (128, 256)), ((60, 100), (100, 60)), ((8, 5000), (256, 1))])
def test_a_thumbnail_fits_the_limit_and_keeps_its_aspect_ratio(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert thumbnail(photo(*shape)).size == size


def test_a_non_contiguous_array_gives_the_same_thumbnail_as_its_copy() -> None:
    image = photo(40, 60)[:, ::-1]
    np.testing.assert_array_equal(np.asarray(thumbnail(image)), image)
