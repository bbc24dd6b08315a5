import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

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
from metalad.runtime.errors import DataError, RunError
from tests.data.pictures import Array, smooth_picture

SIDES = st.integers(8, 20)
PICTURES = st.tuples(SIDES, SIDES).flatmap(lambda size: hnp.arrays(np.uint8, (*size, 3)))
GREYS = st.tuples(SIDES, SIDES).flatmap(lambda size: hnp.arrays(np.uint8, size))
LOSSLESS = [".png", ".bmp", ".tif", ".TIFF", ".PNG"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


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
