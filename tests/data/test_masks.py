"""Masks of labels, masks with gray edges, and the notes about masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from metalad.data.images import Mask, inspect_mask, read_mask, write_png16
from metalad.data.mask_notes import mask_facts, mask_notes
from metalad.data.masks import looks_like_mask, masks_beside
from tests.data.folders import put_image
from tests.data.pictures import encoded, put, smooth_picture


def disk() -> np.ndarray[Any, np.dtype[np.bool_]]:
    rows, columns = np.mgrid[:96, :96]
    return np.asarray((rows - 40) ** 2 + (columns - 50) ** 2 < 20**2)


def white(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return mask.astype(np.uint8) * 255


@pytest.mark.parametrize("quality", [100, 95, 75, 50])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_compression_noise_is_not_anomalous_in_a_lossless_copy(tmp_path: Path, kind: str, quality: int) -> None:
    lossy = put(tmp_path / "lossy", encoded(white(disk()), kind, quality=quality))
    with Image.open(lossy) as image:
        image.convert("L").save(tmp_path / "m.png")
    mask = inspect_mask(tmp_path / "m.png")
    assert mask.is_cut
    assert np.count_nonzero(mask.pixels != disk()) < 0.01 * disk().sum()
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask.pixels)


def test_blurred_edges_are_cut_at_half_brightness(tmp_path: Path) -> None:
    Image.fromarray(white(disk())).filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "m.png")
    mask = inspect_mask(tmp_path / "m.png")
    assert mask.is_cut
    assert np.count_nonzero(mask.pixels != disk()) < 0.05 * disk().sum()


def test_blurred_edges_of_16_bit_masks_are_cut_at_half_brightness(tmp_path: Path) -> None:
    blurred = np.asarray(Image.fromarray(white(disk())).filter(ImageFilter.GaussianBlur(4)))
    write_png16(tmp_path / "m.png", blurred.astype(np.uint16) * 257)
    mask = inspect_mask(tmp_path / "m.png")
    assert mask.is_cut
    np.testing.assert_array_equal(mask.pixels, blurred > 127)


@pytest.mark.parametrize(
    "values", [(1, 2, 3), (253, 254, 255), (85, 170, 255), tuple(range(1, 17)), (64, 128, 192, 255), (255,), (7,)]
)
def test_all_values_of_a_mask_of_labels_are_anomalous(tmp_path: Path, values: tuple[int, ...]) -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[: len(values)] = np.array(values, np.uint8)[:, None]
    Image.fromarray(labels).save(tmp_path / "m.png")
    mask = inspect_mask(tmp_path / "m.png")
    assert not mask.is_cut
    np.testing.assert_array_equal(mask.pixels, labels > 0)


def test_transparent_noise_does_not_count_as_a_level(tmp_path: Path) -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:8] = 255
    rgba[8:, :, :3] = np.arange(128, dtype=np.uint8).reshape(8, 16, 1)
    Image.fromarray(rgba).save(tmp_path / "m.png")
    mask = inspect_mask(tmp_path / "m.png")
    assert not mask.is_cut
    assert mask.pixels.tolist() == [[row < 8] * 16 for row in range(16)]


def test_a_folder_of_masks_is_cut_if_one_of_them_is(tmp_path: Path) -> None:
    (tmp_path / "000").mkdir()
    Image.fromarray(white(disk())).save(tmp_path / "000/a.png")
    assert not inspect_mask(tmp_path / "000").is_cut
    Image.fromarray(white(disk())).filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "000/b.png")
    assert inspect_mask(tmp_path / "000").is_cut


def test_masks_look_unlike_photographs(tmp_path: Path) -> None:
    Image.fromarray(white(disk())).save(tmp_path / "sharp.png")
    Image.fromarray(white(disk())).filter(ImageFilter.GaussianBlur(1)).save(tmp_path / "soft.png")
    put(tmp_path / "lossy.jpg", encoded(white(disk()), "JPEG"))
    Image.fromarray(smooth_picture()).save(tmp_path / "photo.png")
    write_png16(tmp_path / "m16.png", white(disk()).astype(np.uint16) * 257)
    write_png16(tmp_path / "photo16.png", np.arange(1024, dtype=np.uint16).reshape(32, 32))
    (tmp_path / "broken.png").write_text("no image")
    found = {path.stem: looks_like_mask(path) for path in tmp_path.iterdir()}
    assert found == {
        "sharp": True, "soft": True, "lossy": True, "m16": True, "photo": False, "photo16": False, "broken": False
    }  # fmt: skip


@pytest.mark.parametrize("name", ["1_mask", "1-Mask", "1.mask", "1_GT", "1_label", "1_seg", "1_ground_truth", "mask_1"])
def test_masks_beside_images_are_recognized_by_their_names(tmp_path: Path, name: str) -> None:
    image = put_image(tmp_path / "1.jpg")
    Image.fromarray(white(disk())).save(tmp_path / f"{name}.png")
    mask = tmp_path / f"{name}.png"
    assert masks_beside([image, mask]) == {image: mask}
    other = tmp_path / "2" / mask.name
    other.parent.mkdir()
    mask.rename(other)
    assert masks_beside([image, other]) == {}


def facts_of(pixels: np.ndarray[Any, np.dtype[np.bool_]], *, is_cut: bool = False) -> Any:
    return mask_facts(Mask(pixels, is_cut), (8, 8))


def test_the_notes_count_empty_lost_and_cut_masks() -> None:
    empty, lost, usual = np.zeros((96, 96), bool), np.zeros((96, 96), bool), disk()
    lost[0, 0] = True
    assert list(mask_notes([facts_of(usual), facts_of(usual)])) == []
    notes = list(mask_notes([facts_of(empty), facts_of(empty), facts_of(lost), facts_of(usual, is_cut=True)]))
    assert notes == [
        "2 anomalous images with an empty mask; pixel metrics leave them out.",
        "1 anomalous image with a defect so small that its mask is empty at the model's resolution; pixel metrics at "
        "that resolution leave them out.",
        "1 mask with many gray levels; pixels above half brightness are taken as anomalous.",
    ]


def test_masks_that_are_mostly_white_are_noted_if_they_are_the_majority() -> None:
    usual, inverted = facts_of(disk()), facts_of(~disk())
    assert list(mask_notes([usual, usual, inverted, inverted])) == []
    assert list(mask_notes([usual, inverted, inverted])) == [
        "More than half of the pixels are anomalous in 2 of 3 masks; if white means good there, invert the masks."
    ]


def test_a_mask_with_the_name_of_its_image_and_another_suffix_is_a_mask(tmp_path: Path) -> None:
    images = [put_image(tmp_path / f"{number}.jpg", number, (96, 96)) for number in range(4)]
    for stem, mask in (("0", white(disk())), ("1", white(disk())[:32]), ("2", white(disk())[:, ::2])):
        Image.fromarray(mask).save(tmp_path / f"{stem}.png")
    put_image(tmp_path / "3.png", 3, (96, 96))
    for suffix in ("png", "jpg"):
        Image.fromarray(white(disk()) // 2 + 60).save(tmp_path / f"drawing.{suffix}", quality=60)
    assert masks_beside(sorted(tmp_path.iterdir())) == {images[0]: tmp_path / "0.png"}
