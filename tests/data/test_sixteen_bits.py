"""16-bit colors, inverted values, separate planes and alpha channels, from files written by tifffile and by hand."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from metalad.data.convert import to_rgb
from metalad.data.decoding import decode_file
from metalad.data.images import image_size, read_image, read_mask
from metalad.data.reading import ALPHA_NOTE, Reading, find_white_level, white_level_for
from metalad.runtime.errors import ImageError
from tests.data.pictures import Array, png_chunk

SHAPE = (20, 30)
COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}


def random_values(*shape: int, maximum: int = 65535) -> Array:
    values: Array = np.random.default_rng(0).integers(0, maximum + 1, shape).astype(np.uint16)
    return values


def expected_bytes(values: Array, white_level: int = 65535) -> Array:
    scaled = np.floor(values.astype(np.float64) * 255 / white_level + 0.5).clip(0, 255).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2) if scaled.ndim == 2 else scaled


def write_png(path: Path, values: Array) -> Path:
    """Write 16-bit gray or color values, with or without alpha; each row has another filter type."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8).astype(np.int64)
    left = np.pad(rows, ((0, 0), (2 * channels, 0)))[:, : rows.shape[1]]
    content = b"".join(
        bytes([1]) + ((row - before) % 256).astype(np.uint8).tobytes()
        if number % 2
        else bytes([0]) + row.astype(np.uint8).tobytes()
        for number, (row, before) in enumerate(zip(rows, left, strict=True))
    )
    header = struct.pack(">IIBBBBB", width, height, 16, COLOR_TYPE[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))
    return path


def write_tiff(path: Path, values: Array, **options: Any) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colors_with_16_bits_are_decoded_without_loss(tmp_path: Path, suffix: str) -> None:
    values = random_values(*SHAPE, 3)
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        write_png(path, values)
    else:
        write_tiff(path, values, photometric="rgb")
    np.testing.assert_array_equal(decode_file(path).values_16, values)
    np.testing.assert_array_equal(read_image(path), expected_bytes(values))
    np.testing.assert_array_equal(to_rgb(Image.open(path)), read_image(path))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("rows", [7, 20])
def test_every_storage_of_colors_in_tiff_gives_the_same_values(
    tmp_path: Path, byteorder: Any, options: dict[str, Any], planar: str, rows: int
) -> None:
    values = random_values(*SHAPE, 3)
    stored = values if planar == "contig" else np.moveaxis(values, -1, 0).copy()
    common: dict[str, Any] = {
        "photometric": "rgb", "planarconfig": planar, "byteorder": byteorder, "rowsperstrip": rows, **options
    }  # fmt: skip
    path = write_tiff(tmp_path / "a.tif", stored, **common)
    np.testing.assert_array_equal(decode_file(path).values_16, values)
    assert image_size(path) == SHAPE
    bytes_8 = (stored >> 8).astype(np.uint8)
    path = write_tiff(tmp_path / "b.tif", bytes_8, **common)
    np.testing.assert_array_equal(read_image(path), (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("bits", [8, 16])
def test_values_stored_with_white_as_zero_are_inverted(
    tmp_path: Path, byteorder: Any, compression: str | None, bits: int
) -> None:
    values = random_values(*SHAPE) if bits == 16 else (random_values(*SHAPE) >> 8).astype(np.uint8)
    options: dict[str, Any] = {"photometric": "miniswhite", "byteorder": byteorder, "compression": compression}
    path = write_tiff(tmp_path / "a.tif", values, **options)
    shown = expected_bytes(values) if bits == 16 else np.repeat(values[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read_image(path), 255 - shown)
    mask = np.zeros(SHAPE, values.dtype)
    mask[:5] = np.iinfo(values.dtype).max
    path = write_tiff(tmp_path / "mask.tif", ~mask, **options)
    np.testing.assert_array_equal(read_mask(path), mask > 0)


def test_without_tifffile_a_misread_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    planes = write_tiff(tmp_path / "planes.tif", random_values(3, *SHAPE), photometric="rgb", planarconfig="separate")
    inverted = write_tiff(tmp_path / "inverted.tif", random_values(*SHAPE), photometric="miniswhite", byteorder=">")
    for path in (planes, inverted):
        with pytest.raises(ImageError, match=rf"cannot read {path}: .*Pillow.*; install tifffile \(pip install"):
            read_image(path)


def test_a_tiff_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", np.zeros(SHAPE, np.float16), photometric="minisblack")
    with pytest.raises(ImageError, match=r"a.tif: a TIFF with 1 channels of float16.*; convert it to 8- or 16-bit"):
        read_image(path)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["png", "unassalpha", "assocalpha", "unspecified"])
def test_an_alpha_channel_of_0_throughout_is_ignored(tmp_path: Path, channels: int, bits: int, kind: str) -> None:
    values = random_values(*SHAPE, channels)
    values[:, :, -1] = 0
    expected = expected_bytes(values[:, :, :-1] if channels == 4 else values[:, :, 0])
    if bits == 8:
        values = (values >> 8).astype(np.uint8)
        expected = np.repeat(values[:, :, :1], 3, axis=2) if channels == 2 else values[:, :, :3]
    if kind == "png" and bits == 8:
        path = tmp_path / "a.png"
        Image.fromarray(values, "LA" if channels == 2 else "RGBA").save(path)
    elif kind == "png":
        path = write_png(tmp_path / "a.png", values)
    else:
        photometric = "rgb" if channels == 4 else "minisblack"
        path = write_tiff(
            tmp_path / "a.tif", values, photometric=photometric, planarconfig="contig", extrasamples=[kind]
        )
    reading = Reading()
    np.testing.assert_array_equal(read_image(path, reading), expected)
    if kind == "unspecified":  # not declared as alpha: Pillow does not even return it
        return
    assert reading.notes.lines() == (f"1 image {ALPHA_NOTE}, such as {path}",)
    if channels == 4:
        np.testing.assert_array_equal(to_rgb(Image.open(path)), expected)


def test_one_opaque_pixel_makes_the_others_transparent(tmp_path: Path) -> None:
    values = np.zeros((*SHAPE, 4), np.uint8)
    values[0, 0] = (10, 20, 30, 255)
    Image.fromarray(values, "RGBA").save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png")
    assert tuple(picture[0, 0]) == (10, 20, 30)
    assert (picture.reshape(-1, 3)[1:] == 255).all()
    deep = values.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_image(write_png(tmp_path / "deep.png", deep)), picture)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_transparent_16_bit_colors_are_blended_with_white(tmp_path: Path, kind: str) -> None:
    values = random_values(*SHAPE, 4).astype(np.float64) / 65535
    colors, alpha = values[:, :, :3], values[:, :, 3:]
    stored = np.concatenate([colors * alpha if kind == "assocalpha" else colors, alpha], 2)
    path = write_tiff(
        tmp_path / "a.tif", np.rint(stored * 65535).astype(np.uint16), photometric="rgb", extrasamples=[kind]
    )
    np.testing.assert_allclose(read_image(path), 255 * (colors * alpha + 1 - alpha), atol=1.01)


def test_a_mask_with_an_alpha_channel_of_0_throughout_is_read_from_its_colors(tmp_path: Path) -> None:
    mask = np.zeros((*SHAPE, 4), np.uint8)
    mask[:5, :, :3] = 255
    Image.fromarray(mask, "RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), mask[:, :, 0] > 0)


@pytest.mark.parametrize(
    ("highest", "level"),
    [(0, 65535), (1, 255), (255, 255), (256, 511), (1023, 1023), (1024, 2047), (4000, 4095), (32768, 65535)],
)
def test_the_white_level_is_the_next_power_of_two_minus_one(highest: int, level: int) -> None:
    assert white_level_for(highest) == level


def test_the_white_level_is_found_among_16_bit_files_alone(tmp_path: Path) -> None:
    gray = tmp_path / "gray.png"
    Image.fromarray(np.full(SHAPE, 1000, np.uint16)).save(gray)
    color = write_png(tmp_path / "color.png", np.full((*SHAPE, 3), 3000, np.uint16))
    Image.fromarray(np.full((*SHAPE, 3), 255, np.uint8)).save(tmp_path / "bytes.png")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    paths = [tmp_path / "bytes.png", tmp_path / "damaged.png"]
    assert find_white_level(paths) == 65535
    assert find_white_level([*paths, gray]) == 1023
    assert find_white_level([*paths, gray, color]) == 4095


@pytest.mark.parametrize("channels", [1, 3])
def test_values_are_scaled_by_the_white_level_and_higher_ones_are_clipped_and_noted(
    tmp_path: Path, channels: int
) -> None:
    values = random_values(*SHAPE, channels, maximum=4095)
    values = values[:, :, 0] if channels == 1 else values
    reading = Reading(4095)
    path = write_png(tmp_path / "a.png", values)
    np.testing.assert_array_equal(read_image(path, reading), expected_bytes(values, 4095))
    assert reading.notes.lines() == ()
    values[0, 0] = 4096
    path = write_png(tmp_path / "b.png", values)
    assert (read_image(path, reading)[0, 0] == 255).all()
    assert reading.notes.lines() == (f"1 image with 16-bit values above 4095, which are clipped, such as {path}",)
    dark = Reading()
    read_image(write_png(tmp_path / "c.png", values // 2), dark)
    assert "almost black" in dark.notes.lines()[0]
