"""Files with several pages: the first is read and noted, each can be selected, strict reading refuses the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from metalad.data.decoding import count_pages
from metalad.data.images import image_size, read_image
from metalad.data.pages import split_page
from metalad.data.reading import FRAMES_NOTE, Reading, with_pages
from metalad.runtime.errors import ImageError
from tests.data.pictures import Array

SHAPE = (24, 40)


def pages(count: int = 3) -> list[Array]:
    return [np.full((*SHAPE, 3), 40 * (number + 1), np.uint8) for number in range(count)]


def write(path: Path, kind: str, pictures: list[Array]) -> Path:
    first, *others = map(Image.fromarray, pictures)
    options: dict[str, Any] = (
        {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("MPO", "AVIF") else {}
    )
    first.save(path, kind, save_all=True, append_images=others, **options)
    return path


KINDS = {"TIFF": "a.tif", "PNG": "a.png", "WEBP": "a.webp", "MPO": "a.jpg", "AVIF": "a.avif"}


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_the_first_page_is_read_and_the_file_is_noted_or_refused(tmp_path: Path, kind: str, name: str) -> None:
    if kind == "AVIF" and "AVIF" not in Image.SAVE_ALL:
        pytest.skip("Pillow was built without AVIF")
    path = write(tmp_path / name, kind, pages())
    reading = Reading()
    np.testing.assert_allclose(read_image(path, reading), pages()[0], atol=3)
    assert reading.notes.lines() == (f"1 image {FRAMES_NOTE}, such as {path}",)
    with pytest.raises(ImageError, match="3 pages or frames, but one is read; save them as separate files"):
        read_image(path, Reading(strict=True))
    strict = Reading(strict=True)
    for number, picture in enumerate(pages(), 1):
        np.testing.assert_allclose(read_image(path.with_name(f"{name}[{number}]"), strict), picture, atol=3)
    assert strict.notes.lines() == ()
    assert image_size(path.with_name(f"{name}[3]")) == SHAPE
    with pytest.raises(ImageError, match=r"there is no page 4: the file has 3"):
        read_image(path.with_name(f"{name}[4]"))


def test_the_pages_of_all_kinds_but_jpeg_are_listed_one_by_one(tmp_path: Path) -> None:
    paths = [write(tmp_path / KINDS[kind], kind, pages()) for kind in ("TIFF", "PNG", "WEBP", "MPO")]
    single = tmp_path / "single.png"
    Image.fromarray(pages()[0]).save(single)
    damaged = tmp_path / "damaged.tif"
    damaged.write_bytes(b"II*\x00")
    names = [path.name for path in with_pages([*paths, single, damaged])]
    expected = [f"{name}[{number}]" for name in ("a.tif", "a.png", "a.webp") for number in (1, 2, 3)]
    assert names == [*expected, "a.jpg", "single.png", "damaged.tif"]


def test_previews_and_masks_in_a_tiff_are_no_pages(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pages()[0], photometric="rgb")
        file.write(pages()[1][::2, ::2].copy(), photometric="rgb", subfiletype=1)
        file.write(pages()[2], photometric="rgb")
    assert count_pages(tmp_path / "a.tif") == 2
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif[2]"), pages()[2])


@pytest.mark.parametrize("options", [{"bigtiff": True}, {"byteorder": ">"}, {"bigtiff": True, "byteorder": ">"}])
def test_pages_of_every_kind_of_tiff_are_counted(tmp_path: Path, options: dict[str, Any]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack(pages(5)), photometric="rgb", metadata=None, **options)
    assert count_pages(tmp_path / "a.tif") == 5
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif[4]"), pages(5)[3])


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_pages_with_16_bit_colors_are_read(tmp_path: Path, planar: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (3, *SHAPE, 3)).astype(np.uint16)
    stored = values if planar == "contig" else np.moveaxis(values, -1, 1).copy()
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, metadata=None)
    expected = np.floor(values[1] * (255 / 65535) + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif[2]"), expected)


def test_a_small_further_jpeg_such_as_a_gain_map_is_no_page(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", "MPO", [pages()[0], pages()[1][::2, ::2].copy()])
    assert count_pages(path) == 1


def test_a_file_whose_own_name_ends_like_a_page_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png[2]"
    Image.fromarray(pages()[0]).save(path, "PNG")
    assert split_page(path) == (path, None)
    np.testing.assert_array_equal(read_image(path), pages()[0])
    assert split_page(tmp_path / "b.png[2]") == (tmp_path / "b.png", 2)
    assert split_page(tmp_path / "b[2].png") == (tmp_path / "b[2].png", None)
