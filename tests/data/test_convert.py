"""Images in memory are converted to the bytes of the same image file, and ambiguous values are errors."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from metalad.data.convert import is_image, to_rgb
from metalad.data.images import read_image
from metalad.runtime.errors import DataError, ImageError
from tests.data.pictures import STORED, Array, as_stored, encoded, smooth_picture

SIDES = st.integers(8, 20)
COLOR = st.tuples(SIDES, SIDES).flatmap(lambda size: hnp.arrays(np.uint8, (*size, 3)))
GRAY = st.tuples(SIDES, SIDES).flatmap(lambda size: hnp.arrays(np.uint8, size))
LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def rgb(picture: Array) -> Array:
    return picture if picture.ndim == 3 else np.stack([picture] * 3, axis=2)


def planes(picture: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(picture, -1, 0) if picture.ndim == 3 else picture))


# Arrays and tensors


@settings(max_examples=30, deadline=None)
@given(picture=st.one_of(COLOR, GRAY))
def test_all_representations_of_an_image_give_the_same_bytes(picture: Array) -> None:
    before = picture.copy()
    tensor = planes(picture)
    for value in (
        picture,
        picture.astype(np.float16) / np.float16(255),
        picture.astype(np.float32) / np.float32(255),
        picture / 255,
        tensor,
        tensor.float() / 255,
        tensor.double() / 255,
        Image.fromarray(picture),
    ):
        found = to_rgb(value)
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, rgb(picture))
    np.testing.assert_array_equal(picture, before)


def test_floats_are_rounded_to_the_nearest_byte() -> None:
    for shift in (-0.49, 0.49):
        values = np.clip((LEVELS + shift) / 255, 0, 1)
        np.testing.assert_array_equal(to_rgb(values)[:, :, 0], LEVELS)
    np.testing.assert_array_equal(to_rgb(np.clip((LEVELS + 0.51) / 255, 0, 1))[:, :, 0].ravel()[:255], range(1, 256))


@pytest.mark.parametrize(
    "view",
    [
        lambda picture: picture[::-1],
        lambda picture: picture[:, ::2],
        lambda picture: picture[:, :, ::-1],
        lambda picture: np.asfortranarray(picture),
    ],
    ids=["flipped", "every second column", "reversed channels", "Fortran order"],
)
def test_views_are_converted_by_their_values(view: Callable[[Array], Array]) -> None:
    picture = view(smooth_picture())
    np.testing.assert_array_equal(to_rgb(picture), np.array(picture))
    np.testing.assert_array_equal(to_rgb(np.divide(picture, 255)), np.array(picture))


def test_a_tensor_may_be_a_view_or_require_gradients() -> None:
    picture = smooth_picture()
    view = torch.from_numpy(picture).permute(2, 0, 1)
    np.testing.assert_array_equal(to_rgb(view), picture)
    np.testing.assert_array_equal(to_rgb((view / 255).requires_grad_()), picture)
    np.testing.assert_array_equal(to_rgb(torch.nn.Parameter(view / 255)), picture)


def test_a_read_only_array_is_accepted() -> None:
    picture = smooth_picture()
    picture.flags.writeable = False
    np.testing.assert_array_equal(to_rgb(picture), picture)


# Pillow images


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def palette(transparent: bool) -> bytes:
    image = Image.fromarray(smooth_picture()).quantize(16)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({"transparency": 3} if transparent else {}))
    return buffer.getvalue()


def with_alpha(mode: str, kind: str) -> bytes:
    picture = smooth_picture()
    alpha = np.linspace(0, 255, picture.shape[0] * picture.shape[1]).reshape(picture.shape[:2]).astype(np.uint8)
    image = Image.fromarray(picture).convert("RGB" if mode == "RGBA" else "L")
    image.putalpha(Image.fromarray(alpha))
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def converted(mode: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(smooth_picture()).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def rotated(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(as_stored(smooth_picture(), orientation), kind, exif=exif)


FILES: dict[str, Callable[[], bytes]] = {
    "gray": lambda: converted("L", "PNG"),
    "black and white": lambda: converted("1", "PNG"),
    "CMYK": lambda: converted("CMYK", "JPEG"),
    "palette": lambda: palette(False),
    "transparent palette": lambda: palette(True),
    "RGBA": lambda: with_alpha("RGBA", "PNG"),
    "RGBA TIFF": lambda: with_alpha("RGBA", "TIFF"),
    "RGBA WebP": lambda: with_alpha("RGBA", "WEBP"),
    "gray with alpha": lambda: with_alpha("LA", "PNG"),
    "BMP": lambda: converted("RGB", "BMP"),
    "16-bit PNG": lambda: encoded(np.arange(960, dtype=np.uint16).reshape(24, 40) * 68, "PNG"),
    "16-bit TIFF": lambda: encoded(np.arange(960, dtype=np.uint16).reshape(24, 40) * 68, "TIFF"),
    **{
        f"{kind} with orientation {orientation}": lambda orientation=orientation, kind=kind: rotated(orientation, kind)  # type: ignore[misc]
        for kind in ("PNG", "JPEG", "TIFF", "WEBP")
        for orientation in STORED
    },
}


@pytest.mark.parametrize("name", FILES)
def test_a_pillow_image_gives_the_bytes_of_its_file(tmp_path: Path, name: str) -> None:
    content = FILES[name]()
    (tmp_path / "image").write_bytes(content)
    expected = read_image(tmp_path / "image")
    assert expected.std() > 0
    np.testing.assert_array_equal(to_rgb(opened(content)), expected)
    with Image.open(tmp_path / "image") as image:
        np.testing.assert_array_equal(to_rgb(image), expected)
        np.testing.assert_array_equal(to_rgb(image), expected)  # a second time, after it was loaded
    loaded = opened(content)
    loaded.load()
    np.testing.assert_array_equal(to_rgb(loaded), expected)


def test_a_refused_pillow_image_names_its_file_and_the_reason(tmp_path: Path) -> None:
    for image, message in (
        (Image.new("F", (20, 20)), "cannot read the image: pixels of mode F; convert the image to 8- or 16-bit gray"),
        (Image.new("I", (20, 20)), "cannot read the image: pixels of mode I;"),
        (Image.new("RGB", (20, 7)), "cannot read the image: 7 × 20 pixels; each side needs at least 8"),
    ):
        with pytest.raises(ImageError, match=message):
            to_rgb(image)
    path = tmp_path / "truncated.png"
    path.write_bytes(encoded(smooth_picture(), "PNG")[:60])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"truncated\.png: damaged or truncated"):
        to_rgb(image)


# Ambiguous values

WRONG: list[tuple[Any, str]] = [
    (np.full((9, 9, 3), 1.01), r"x is of float64 with values from 1.01 to 1.01; floats must be in [0, 1]"),
    (LEVELS.astype(np.float32), r"x is of float32 with values from 0 to 255; floats must be in [0, 1]"),
    (np.full((9, 9), -0.01, np.float32), r"x is of float32 with values from -0.01 to -0.01; floats must be in [0, 1]"),
    (np.where(np.eye(9) > 0, np.nan, 0.5), r"x is of float64 with values from nan to nan; floats must be in [0, 1]"),
    (np.where(np.eye(9) > 0, np.inf, 0.5), r"x is of float64 with values from 0.5 to inf; floats must be in [0, 1]"),
    (np.zeros((3, 9, 12), np.uint8), r"x is an array [3, 9, 12], channels first; give [height, width, 3]: np.moveaxis"),
    (np.zeros((1, 9, 12), np.uint8), r"x is an array [1, 9, 12], channels first; give [height, width, 3]: np.moveaxis"),
    (np.zeros((9, 12, 4), np.uint8), r"x has four channels [9, 12, 4]; give RGB, as x[..., :3] (is it BGR? x[..., 2::"),
    (np.zeros((9, 12, 1), np.uint8), r"x is [9, 12, 1]; give a gray image as [height, width]: x[..., 0]"),
    (np.zeros((9, 12, 2), np.uint8), r"x is an array [9, 12, 2]; give [height, width] or [height, width, 3]"),
    (
        np.zeros((5, 9, 12, 3), np.uint8),
        r"x is an array [5, 9, 12, 3], a batch; give its images one by one, as list(x)",
    ),
    (np.zeros(12, np.uint8), r"x is an array [12]; give [height, width] or [height, width, 3]"),
    (np.zeros((9, 12, 3), np.int64), r"x is of int64; give uint8, uint16, or floats in [0, 1]"),
    (np.zeros((9, 12, 3), bool), r"x is of bool; give uint8, uint16, or floats in [0, 1]"),
    (np.zeros((9, 12, 3), complex), r"x is of complex128; give uint8, uint16, or floats in [0, 1]"),
    (np.zeros((7, 12, 3), np.uint8), r"x is 7 × 12 pixels; give at least 8 a side, 150,000,000 in all"),
    (np.zeros((0, 0, 3), np.uint8), r"x is 0 × 0 pixels; give at least 8 a side"),
    (np.broadcast_to(np.uint8(0), (15_000, 15_000)), r"x is 15000 × 15000 pixels; give at least 8 a side, 150,000,000"),
    (torch.zeros(9, 12, 3), r"x is a tensor [9, 12, 3], channels last; give [3, height, width]: x.permute(2, 0, 1)"),
    (torch.zeros(9, 12, 4), r"x is a tensor [9, 12, 4], channels last; give [3, height, width]: x.permute(2, 0, 1)"),
    (torch.zeros(5, 3, 9, 12), r"x is a tensor [5, 3, 9, 12], a batch; give its images one by one, as list(x)"),
    (torch.zeros(1, 9, 12), r"x is a tensor [1, 9, 12]; give [3, height, width] or [height, width]"),
    (torch.zeros(4, 9, 12), r"x is a tensor [4, 9, 12]; give [3, height, width] or [height, width]"),
    (torch.zeros(12), r"x is a tensor [12]; give [3, height, width] or [height, width]"),
    (torch.zeros(3, 9, 12, dtype=torch.int64), r"x is of int64; give uint8, uint16, or floats in [0, 1]"),
    (torch.zeros(3, 9, 12, dtype=torch.bool), r"x is of bool; give uint8, uint16, or floats in [0, 1]"),
    (torch.full((3, 9, 12), 255.0), r"x is of float32 with values from 255 to 255; floats must be in [0, 1]"),
    (torch.zeros(3, 9, 12, dtype=torch.bfloat16), r"x is a tensor of torch.bfloat16; give a dense one of uint8 or flo"),
    (torch.zeros(3, 9, 12).to_sparse(), r"x is a tensor of torch.float32; give a dense one of uint8 or float32"),
    (b"bytes", r"x is a bytes; give a path, a NumPy array, a Pillow image or a torch tensor"),
    ([[0, 1], [1, 0]], r"x is a list; give a path, a NumPy array, a Pillow image or a torch tensor"),
]


@pytest.mark.parametrize(("value", "message"), WRONG, ids=[message[5:30] for _, message in WRONG])
def test_an_ambiguous_value_is_an_error_that_states_the_remedy(value: Any, message: str) -> None:
    with pytest.raises(DataError) as failure:
        to_rgb(value, "x")
    assert str(failure.value).startswith(message)


def test_the_range_is_checked_at_its_ends() -> None:
    assert set(to_rgb(np.zeros((8, 8))).ravel()) == {0}
    assert set(to_rgb(np.ones((8, 8))).ravel()) == {255}
    for value in (np.nextafter(1.0, 2), np.nextafter(0.0, -1)):
        with pytest.raises(DataError, match="floats must be in"):
            to_rgb(np.full((8, 8), value))


def test_arrays_pillow_images_and_tensors_are_images_and_nothing_else_is() -> None:
    images = (
        smooth_picture(),
        Image.fromarray(smooth_picture()),
        torch.zeros(3, 8, 8),
        torch.nn.Parameter(torch.ones(8)),
    )
    assert all(map(is_image, images))
    assert not any(map(is_image, ("a.png", Path("a.png"), [smooth_picture()], None, 1.0, iter(()))))


def test_the_bytes_are_a_copy() -> None:
    """So a caller may reuse a buffer, such as that of a camera."""
    picture = smooth_picture()
    for value in (picture, planes(picture), torch.from_numpy(picture).permute(2, 0, 1)):
        found = to_rgb(value)
        found[:] = 0
        np.testing.assert_array_equal(to_rgb(value), smooth_picture())
