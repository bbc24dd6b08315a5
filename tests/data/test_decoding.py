import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metalad.data import decoding
from metalad.data.images import image_size, read_image, read_image_bytes, read_mask
from metalad.data.reading import Reading
from metalad.runtime.errors import ImageError
from tests.data.pictures import STORED, Array, as_stored, encoded, one_bit_png, png_chunk, put, smooth_picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_images_are_rotated_upright_by_their_exif_orientation(
    tmp_path: Path, orientation: int, kind: str, options: dict[str, Any]
) -> None:
    upright = smooth_picture()
    path = tmp_path / f"{orientation}.image"
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.write_bytes(encoded(as_stored(upright, orientation), kind, exif=exif, **options))
    np.testing.assert_allclose(read_image(path), upright, atol=4 if kind == "JPEG" else 0)
    assert image_size(path) == (24, 40)


def test_an_exif_chunk_after_the_pixels_of_a_png_is_used(tmp_path: Path) -> None:
    upright = smooth_picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(as_stored(upright, 6), "PNG")
    late = plain[:-12] + png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + plain[-12:]
    (tmp_path / "a.png").write_bytes(late)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright)
    assert image_size(tmp_path / "a.png") == (24, 40)


@pytest.mark.parametrize("orientation", STORED)
def test_16_bit_gray_images_are_rotated_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(96, dtype=np.uint16).reshape(8, 12) * 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.png").write_bytes(encoded(as_stored(upright, orientation), "PNG", exif=exif))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[:, :, 1], np.arange(96).reshape(8, 12))


def test_the_format_is_detected_from_the_content_and_not_from_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(smooth_picture(), "BMP"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), smooth_picture())


BAD: dict[str, tuple[bytes, str]] = {
    "text.png": (b"hello, I am a text", r"not a PNG, JPEG, BMP, TIFF, WebP, .* image"),
    "cut.jpg": (encoded(smooth_picture(), "JPEG")[:600], "damaged or truncated"),
    "cut.png": (encoded(smooth_picture(), "PNG")[:80], "damaged or truncated"),
    "head.png": (b"\x89PNG\r\n\x1a\n", "damaged or truncated"),
    "empty.png": (b"", "the file is empty"),
    "one.png": (encoded(np.zeros((1, 1, 3), np.uint8), "PNG"), "1 × 1 pixels; each side needs at least 8"),
    "thin.png": (encoded(np.zeros((7, 90, 3), np.uint8), "PNG"), "7 × 90 pixels; each side needs at least 8"),
    "bomb.png": (
        one_bit_png(30_000, 30_000),
        r"30,000 × 30,000 pixels are more than the limit of 150,000,000 \(a decompression bomb\?\)",
    ),
    "float.tif": (encoded(np.zeros((8, 8), np.float32), "TIFF"), "mode F; convert the image to 8- or 16-bit"),
    "gif.png": (encoded(np.zeros((8, 8), np.uint8), "GIF"), "not a PNG"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_the_error_names_the_unreadable_file_and_the_reason(
    tmp_path: Path, name: str, read: Callable[[Path], Array]
) -> None:
    content, reason = BAD[name]
    path = put(tmp_path / name, content)
    with pytest.raises(ImageError, match=reason) as caught:
        read(path)
    assert str(caught.value).startswith(f"cannot read {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["text.png", "head.png", "empty.png", "one.png", "bomb.png"])
def test_image_size_rejects_files_by_their_header(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    with pytest.raises(ImageError, match=reason):
        image_size(put(tmp_path / name, content))


def test_errors_for_missing_files_folders_and_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="a folder, not an image file"):
        image_size(tmp_path)

    def fail(*_: object) -> None:  # real permissions have no effect if the tests run as root
        raise PermissionError(13, "Permission denied")

    (tmp_path / "there.png").touch()
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(ImageError, match="no permission to read it; change"):
        read_image(tmp_path / "there.png")


def test_the_pixel_limit_of_metalad_replaces_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert image_size(put(tmp_path / "fits.png", one_bit_png(12_247, 12_247))) == (12_247, 12_247)
    with pytest.raises(ImageError, match="decompression bomb"):
        image_size(put(tmp_path / "not.png", one_bit_png(12_248, 12_248)))
    picture = smooth_picture()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", picture[:, :, 0].size - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("PNG", "BMP", "TIFF", "JPEG", "WEBP"):
            path = put(tmp_path / kind, encoded(picture, kind))
            assert read_image(path).shape == picture.shape
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    for kind in ("TIFF", "WEBP"):
        with pytest.raises(ImageError, match="more than the limit"):
            read_image(tmp_path / kind)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
)
def test_damaged_files_are_read_or_raise_image_error(
    folder: Path, kind: str, cut: float, flips: list[tuple[float, int]]
) -> None:
    whole = bytearray(encoded(smooth_picture(), kind))
    for position, change in flips:
        whole[int(position * len(whole))] ^= change
    path = put(folder / "damaged.png", bytes(whole[: int(cut * len(whole))]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "MAX_PIXELS", 10**6)  # limits the memory use for damaged headers
        with contextlib.suppress(ImageError):
            assert read_image(path).ndim == 3


KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "L", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
    ("PNG", "I;16", {}),
    ("JPEG", "RGB", {"quality": 70}),
    ("JPEG", "RGB", {"progressive": True}),
    ("WEBP", "RGB", {"quality": 70}),
    ("BMP", "RGB", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "I;16", {"compression": "tiff_deflate"}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
]


@pytest.mark.parametrize(("kind", "mode", "options"), KINDS)
def test_the_content_of_a_file_in_memory_gives_the_pixels_and_notes_of_the_file_without_opening_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mode: str, options: dict[str, Any]
) -> None:
    picture = Image.fromarray(smooth_picture())
    if mode == "I;16":
        picture = Image.fromarray(smooth_picture()[:, :, 0].astype(np.uint16) * 17)
    else:
        picture = picture.convert(mode)
    path = tmp_path / "image"
    further = {"save_all": True, "append_images": [picture]} if kind in ("TIFF", "WEBP") else {}
    picture.save(path, kind, **options, **further)
    from_file, from_memory = Reading(4095), Reading(4095)
    expected, content = read_image(path, from_file), path.read_bytes()
    size = image_size(path)
    path.unlink()

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(Path, "stat", refused)
    np.testing.assert_array_equal(read_image_bytes(str(path), content, from_memory), expected)
    assert decoding.header_size_of_bytes(path, content) == size
    assert from_memory.notes.of(path) == from_file.notes.of(path)


@pytest.mark.parametrize("content", [b"", b"no image", encoded(smooth_picture(), "PNG")[:60]])
def test_damaged_content_is_an_image_error_with_the_reason_of_the_file(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "image", content)
    with pytest.raises(ImageError) as expected:
        read_image(path)
    with pytest.raises(ImageError) as error:
        read_image_bytes("a\0b[2]", content)
    assert error.value.reason == expected.value.reason
