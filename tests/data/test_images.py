import contextlib
import io
import struct
import warnings
import zlib
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

from metalad.data import decoding
from metalad.data.images import (
    find_images,
    image_size,
    iter_images,
    read_image,
    read_mask,
    resize_image,
    resize_map,
    resize_mask,
    write_image,
    write_png16,
)
from metalad.runtime.errors import DataError, ImageError, RunError

Array = np.ndarray[Any, np.dtype[Any]]

SIDES = st.integers(8, 20)
PICTURES = st.tuples(SIDES, SIDES).flatmap(lambda size: hnp.arrays(np.uint8, (*size, 3)))
GREYS = st.tuples(SIDES, SIDES).flatmap(lambda size: hnp.arrays(np.uint8, size))
LOSSLESS = [".png", ".bmp", ".tif", ".TIFF", ".PNG"]
# Positions of row 0 and column 0 of the stored pixels in the upright picture (EXIF 2.3, tag 274).
STORED = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def smooth_picture() -> Array:
    y, x = np.mgrid[:24, :40]
    return np.stack([y * 10, x * 6, 255 - y * 5 - x * 3], axis=2).astype(np.uint8)


def turned(upright: Array, orientation: int) -> Array:
    row, column = STORED[orientation]
    stored = upright if row in ("top", "bottom") else upright.swapaxes(0, 1)
    stored = stored[::-1] if row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if column in ("bottom", "right") else stored
    return np.ascontiguousarray(stored)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def one_bit_png(width: int, height: int) -> bytes:
    """A PNG with width × height pixels in its header, but data for only one row."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    line = zlib.compress(bytes(1 + (width + 7) // 8))
    chunks = [(b"IHDR", header), (b"IDAT", line), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def encoded(picture: Array, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


@settings(max_examples=20, deadline=None)
@given(picture=st.one_of(PICTURES, GREYS), suffix=st.sampled_from(LOSSLESS))
def test_lossless_formats_keep_all_pixels(folder: Path, picture: Array, suffix: str) -> None:
    path = folder / f"round{suffix}"
    write_image(path, picture)
    expected = picture if picture.ndim == 3 else np.stack([picture] * 3, axis=2)
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == picture.shape[:2]


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_lossy_formats_have_a_small_error(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", smooth_picture())
    difference = read_image(tmp_path / f"a{suffix}").astype(int) - smooth_picture()
    assert np.abs(difference).mean() < 4


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
    path.write_bytes(encoded(turned(upright, orientation), kind, exif=exif, **options))
    np.testing.assert_allclose(read_image(path), upright, atol=4 if kind == "JPEG" else 0)
    assert image_size(path) == (24, 40)


def test_an_exif_chunk_after_the_pixels_of_a_png_is_used(tmp_path: Path) -> None:
    upright = smooth_picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(turned(upright, 6), "PNG")
    late = plain[:-12] + png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + plain[-12:]
    (tmp_path / "a.png").write_bytes(late)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright)
    assert image_size(tmp_path / "a.png") == (24, 40)


@pytest.mark.parametrize("orientation", STORED)
def test_16_bit_gray_images_are_rotated_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(96, dtype=np.uint16).reshape(8, 12) * 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.png").write_bytes(encoded(turned(upright, orientation), "PNG", exif=exif))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[:, :, 1], np.arange(96).reshape(8, 12))


@settings(max_examples=20, deadline=None)
@given(grey=hnp.arrays(np.uint16, (9, 8)), suffix=st.sampled_from([".png", ".tif"]))
def test_16_bit_gray_is_scaled_by_its_full_range(folder: Path, grey: Array, suffix: str) -> None:
    path = folder / f"grey{suffix}"
    grey[0, :2] = 0, 65535
    if suffix == ".png":
        write_png16(path, grey)
        with Image.open(path) as written:
            np.testing.assert_array_equal(np.asarray(written), grey)
    else:
        Image.fromarray(grey).save(path)
    picture = read_image(path)
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert picture[0, 1].tolist() == [255, 255, 255]
    assert np.abs(picture[:, :, 0] - grey / 257).max() <= 0.5


def test_12_bit_tiff_is_scaled_by_its_full_range(tmp_path: Path) -> None:
    row = bytes([0xFF, 0xF0, 0x00]) * 4  # pairs of 4095 and 0
    tags = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 96)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in tags)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 104) + row * 8 + directory + bytes(4))
    picture = read_image(tmp_path / "a.tif")
    assert (picture[:, ::2] == 255).all()
    assert (picture[:, 1::2] == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_all_pixel_modes_give_the_same_colors(tmp_path: Path, mode: str) -> None:
    picture = np.zeros((10, 8, 3), np.uint8)
    picture[4:] = 255
    suffix = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    Image.fromarray(picture).convert(mode).save(tmp_path / f"a.{suffix}", quality=100)
    np.testing.assert_allclose(read_image(tmp_path / f"a.{suffix}"), picture, atol=8 if suffix == "jpg" else 0)


@settings(max_examples=20, deadline=None)
@given(rgba=hnp.arrays(np.uint8, (8, 9, 4)))
def test_transparent_pixels_are_blended_with_white(folder: Path, rgba: Array) -> None:
    path = folder / "rgba.png"
    rgba[0, :3, 3] = 255
    rgba[1, :3, 3] = 0
    Image.fromarray(rgba).save(path)
    picture = read_image(path)
    alpha = rgba[:, :, 3:] / 255
    np.testing.assert_allclose(picture, rgba[:, :, :3] * alpha + 255 * (1 - alpha), atol=1)
    np.testing.assert_array_equal(picture[0, :3], rgba[0, :3, :3])
    assert (picture[1, :3] == 255).all()


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_transparent_palette_colors_are_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((3, 2), 1)
    image.save(tmp_path / "a.png", transparency=transparency)
    picture = read_image(tmp_path / "a.png")
    assert picture[0, 0].tolist() == [10, 20, 30]
    assert picture[2, 3].tolist() == [255, 255, 255]


def test_the_format_is_detected_from_the_content_and_not_from_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(smooth_picture(), "BMP"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), smooth_picture())


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD: dict[str, tuple[bytes, str]] = {
    "text.png": (b"hello, I am a text", "not a PNG, JPEG, BMP, TIFF or WebP image"),
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

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(ImageError, match="no permission to read it; change"):
        read_image(tmp_path / "none.png")


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


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_masks_of_all_pixel_modes_are_true_where_not_black(tmp_path: Path, mode: str) -> None:
    truth = np.zeros((9, 11), bool)
    truth[2:5, 3:9] = True
    Image.fromarray(truth.astype(np.uint8) * 255).convert("RGB").convert(mode).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", (9, 11)), truth)


def test_small_mask_values_are_anomalous_except_in_jpeg(tmp_path: Path) -> None:
    truth = np.zeros((32, 32), bool)
    truth[8:24, 8:24] = True
    Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), truth)
    write_png16(tmp_path / "m16.png", truth.astype(np.uint16))
    np.testing.assert_array_equal(read_mask(tmp_path / "m16.png"), truth)
    truth[10:13, 10:12] = False
    Image.fromarray(truth.astype(np.uint8) * 255).save(tmp_path / "m.jpg", quality=60)
    assert (read_image(tmp_path / "m.jpg")[~truth] > 0).any()
    np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg"), truth)


def test_a_transparent_pixel_of_a_mask_is_not_anomalous(tmp_path: Path) -> None:
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[:, 4:, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[True] * 4 + [False] * 4] * 8


def test_the_error_for_a_wrong_mask_size_names_both_sizes(tmp_path: Path) -> None:
    write_image(tmp_path / "m.png", np.zeros((9, 11), np.uint8))
    with pytest.raises(DataError, match=r"m\.png is 9 × 11 \(height × width\), but its image is 11 × 9; make"):
        read_mask(tmp_path / "m.png", (11, 9))


@settings(max_examples=25, deadline=None)
@given(picture=PICTURES, height=st.integers(1, 40), width=st.integers(2, 40))
def test_resize_image_equals_interpolation_in_torch(picture: Array, height: int, width: int) -> None:
    values = torch.from_numpy(picture).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(
        values, size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )
    resized = resize_image(picture, (height, width))
    # Pillow rounds to bytes after each of the two axes.
    np.testing.assert_allclose(resized, expected[0].permute(1, 2, 0).numpy(), atol=1.5)


@settings(max_examples=25, deadline=None)
@given(
    values=hnp.arrays(np.float32, (9, 12), elements=st.floats(-1e4, 1e4, width=32)),
    height=st.integers(1, 40),
    width=st.integers(2, 40),  # at a width of 1 torch repeats the first row
)
def test_resize_map_equals_interpolation_in_torch(values: Array, height: int, width: int) -> None:
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None].double(),
        size=(height, width),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
    resized = resize_map(values, (height, width))
    np.testing.assert_allclose(resized, expected[0, 0].numpy(), rtol=1e-5, atol=1e-2)
    assert resized.dtype == np.float32


def unambiguous(old: int, sides: range) -> list[int]:
    """Omit sizes for which a pixel center is on the border of two pixels: torch rounds in single precision."""
    return [new for new in sides if all((2 * index + 1) * old % (2 * new) for index in range(new))]


@settings(max_examples=25, deadline=None)
@given(
    mask=hnp.arrays(bool, (9, 12)),
    height=st.sampled_from(unambiguous(9, range(1, 41))),
    width=st.sampled_from(unambiguous(12, range(2, 41))),
)
def test_resize_mask_equals_nearest_interpolation_in_torch(mask: Array, height: int, width: int) -> None:
    values = torch.from_numpy(mask)[None, None].float()
    expected = torch.nn.functional.interpolate(values, size=(height, width), mode="nearest-exact")
    np.testing.assert_array_equal(resize_mask(mask, (height, width)), expected[0, 0].bool().numpy())


def test_resizing_to_the_same_size_returns_a_copy() -> None:
    picture = smooth_picture()
    same = resize_image(picture, (24, 40))
    np.testing.assert_array_equal(same, picture)
    assert not np.shares_memory(same, picture)


def test_writing_rejects_unknown_suffixes_and_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.gif: its suffix must be one of \.bmp"):
        write_image(tmp_path / "a.gif", smooth_picture())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="a file exists where a folder is needed"):
        write_png16(tmp_path / "file" / "a.png", np.zeros((8, 8), np.uint16))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


NAMES = st.sampled_from(["a", "b", "a-b", "a.b", "A", "z 1"])


@settings(max_examples=30, deadline=None)
@given(paths=st.sets(st.tuples(NAMES, NAMES, NAMES), max_size=8))
def test_find_images_sorts_by_path(tmp_path_factory: pytest.TempPathFactory, paths: set[tuple[str, str, str]]) -> None:
    folder = tmp_path_factory.mktemp("walk")
    expected = []
    for depth, parts in enumerate(sorted(paths)):
        path = folder.joinpath(*parts[depth % 3 :]).with_name(f"{parts[-1]}.{depth}.JpG")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        expected.append(path)
    assert find_images(folder) == sorted(expected, key=lambda path: path.as_posix())


def test_hidden_files_and_other_file_types_are_ignored(tmp_path: Path) -> None:
    for name in (".hidden.png", ".git/a.png", "notes.txt", "png", "a.png.tmp", "deep/er/b.PNG", "c.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == [
        "c.webp",
        "deep/er/b.PNG",
    ]


def test_symbolic_links_are_followed_and_each_folder_is_visited_once(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "again").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "link.png").symlink_to("b/2.png")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a/1.png", "b/2.png", "link.png"]


def test_iter_images_rejects_invalid_folders_immediately(tmp_path: Path) -> None:
    (tmp_path / "file.png").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"no folder .*none; check the path"):
        iter_images(tmp_path / "none")
    with pytest.raises(DataError, match=r"file\.png is a file, but a folder of images is needed"):
        iter_images(tmp_path / "file.png")
    with pytest.raises(DataError, match=r"cannot read the folder .*loop"):
        iter_images(tmp_path / "loop")


def test_iter_images_is_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    walk = iter_images(tmp_path)
    assert next(walk) == tmp_path / "a" / "1.png"

    def fail(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", fail)
    with pytest.raises(DataError, match=r"cannot read the folder .*b: Permission denied"):
        next(walk)


def test_published_images_are_read_at_their_full_size(shared_data: Path) -> None:
    paths = find_images(shared_data / "original" / "bottle_sample" / "test")
    assert len(paths) == 20
    picture = read_image(paths[0])
    assert picture.shape == (900, 900, 3)
    assert picture.std() > 10
    masks = find_images(shared_data / "original" / "bottle_sample" / "ground_truth" / "broken_large")
    mask = read_mask(masks[0], (900, 900))
    assert 0 < mask.mean() < 0.5


def test_output_pictures_of_predict_are_ignored(tmp_path: Path) -> None:
    for name in ("a.png", "maps/a.png", "overlays/a.png", "sub/maps/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16)).save(tmp_path / name)
    everything = ["a.png", "maps/a.png", "overlays/a.png", "sub/maps/b.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == everything
    (tmp_path / "predictions.jsonl").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == ["a.png", "sub/maps/b.png"]
