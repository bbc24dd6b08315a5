import errno
import os
import time
from pathlib import Path

import numpy as np
import pytest

from metalad.data import Sample, Skipped, load_images, loading, read_category
from metalad.data.images import read_image, resize_image
from metalad.runtime.errors import DataError, ImageError, RunError
from tests.data.folders import put_samples, put_text


def test_images_keep_their_order_and_sizes(shared_data: Path) -> None:
    samples = read_category(shared_data / "mtd" / "magnetic_tile").train[:40]
    images = load_images(samples, (32, 48))
    assert images.samples == samples
    assert (len(images), images.skipped) == (40, ())
    for index, sample in enumerate(samples):
        original = read_image(sample.path)
        assert images.sizes[index] == original.shape[:2]
        np.testing.assert_array_equal(images.pixels[index], resize_image(original, (32, 48)))
    assert len(set(images.sizes)) > 10


def test_unreadable_images_are_skipped_and_named(tmp_path: Path) -> None:
    samples = put_samples(tmp_path, range(5))
    put_text(samples[0].path, "no image")
    put_text(samples[3].path, "")
    images = load_images(samples, (16, 16))
    assert images.samples == (samples[1], samples[2], samples[4])
    assert images.pixels.shape == (3, 16, 16, 3)
    assert len(images.sizes) == 3
    np.testing.assert_array_equal(images.pixels[2], resize_image(read_image(samples[4].path), (16, 16)))
    assert images.skipped == (
        Skipped(samples[0].path, "not a PNG, JPEG, BMP, TIFF or WebP image"),
        Skipped(samples[3].path, "the file is empty"),
    )


def test_none_readable_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    samples = [Sample(put_text(tmp_path / f"{name}.png", ""), False, "good") for name in "ab"]
    with pytest.raises(DataError, match=r"none of 2 images can be read; the first, .*a\.png: the file is empty"):
        load_images(samples, (16, 16))
    with pytest.raises(DataError, match="no images to load"):
        load_images([], (16, 16))


def test_strict_raises_at_once_and_stops_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = put_samples(tmp_path, range(100))
    put_text(samples[1].path, "no image")
    decoded = []

    def slow(path: Path) -> object:
        decoded.append(path)
        time.sleep(0.005)
        return read_image(path)

    monkeypatch.setattr(loading, "read_image", slow)
    with pytest.raises(ImageError, match=r"001\.png: not a PNG") as caught:
        load_images(samples, (16, 16), strict=True, progress=True)
    count = len(decoded)
    assert count < 100
    time.sleep(0.05)
    assert len(decoded) == count
    assert caught.value  # its traceback holds what was decoding


def test_what_does_not_fit_in_memory_goes_to_a_file_that_vanishes(tmp_path: Path) -> None:
    samples = put_samples(tmp_path / "images", range(6))
    put_text(samples[2].path, "")
    inside = load_images(samples, (16, 16), memory_limit=6 * 16 * 16 * 3)
    outside = load_images(samples, (16, 16), memory_limit=6 * 16 * 16 * 3 - 1, cache=tmp_path / "cache")
    assert not isinstance(inside.pixels, np.memmap)
    assert isinstance(outside.pixels, np.memmap)
    np.testing.assert_array_equal(inside.pixels, outside.pixels)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot claim space on disk beforehand")
def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    samples = put_samples(tmp_path / "images", range(2))
    with pytest.raises(RunError, match="the disk is full; free some space or choose another folder"):
        load_images(samples, (16, 16), memory_limit=0, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    put_text(tmp_path / "file", "")
    with pytest.raises(RunError, match="a file exists where a folder is needed"):
        load_images(samples, (16, 16), memory_limit=0, cache=tmp_path / "file")


def test_progress_goes_to_the_terminal_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = put_samples(tmp_path, range(2))
    load_images(samples, (16, 16))
    assert capsys.readouterr() == ("", "")
    load_images(samples, (16, 16), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading images" in err
