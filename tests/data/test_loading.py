import errno
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from metalad.data import Sample, Skipped, load_images, loading, read_category
from metalad.data.formats import readable_names
from metalad.data.images import read_image, resize_image
from metalad.runtime import progress
from metalad.runtime.errors import DataError, ImageError, RunError
from tests.data.folders import put_samples, put_text


def test_images_have_the_order_of_the_samples_and_their_original_sizes(shared_data: Path) -> None:
    samples = read_category(shared_data / "mtd" / "magnetic_tile").train[:40]
    images = load_images(samples, (32, 48))
    assert images.samples == samples
    assert (len(images), images.skipped) == (40, ())
    for index, sample in enumerate(samples):
        original = read_image(sample.path)
        assert images.sizes[index] == original.shape[:2]
        np.testing.assert_array_equal(images.pixels[index], resize_image(original, (32, 48)))
    assert len(set(images.sizes)) > 10


def test_unreadable_images_are_skipped_and_listed(tmp_path: Path) -> None:
    samples = put_samples(tmp_path, range(5))
    put_text(samples[0].path, "no image")
    put_text(samples[3].path, "")
    images = load_images(samples, (16, 16))
    assert images.samples == (samples[1], samples[2], samples[4])
    assert images.pixels.shape == (3, 16, 16, 3)
    assert len(images.sizes) == 3
    np.testing.assert_array_equal(images.pixels[2], resize_image(read_image(samples[4].path), (16, 16)))
    assert images.skipped == (
        Skipped(samples[0].path, f"not a {readable_names()} image"),
        Skipped(samples[3].path, "the file is empty"),
    )


def test_the_error_for_no_readable_image_names_the_first_reason(tmp_path: Path) -> None:
    samples = [Sample(put_text(tmp_path / f"{name}.png", ""), False, "good") for name in "ab"]
    with pytest.raises(DataError, match=r"none of 2 images can be read; the first, .*a\.png: the file is empty"):
        load_images(samples, (16, 16))
    with pytest.raises(DataError, match="no images to load"):
        load_images([], (16, 16))


def test_strict_raises_immediately_and_stops_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = put_samples(tmp_path, range(100))
    put_text(samples[1].path, "no image")
    decoded = []

    def slow(path: Path, *_: object) -> object:
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
    assert caught.value  # keeps the traceback, which refers to the generator


def test_pixels_above_the_memory_limit_are_stored_in_a_temporary_file(tmp_path: Path) -> None:
    samples = put_samples(tmp_path / "images", range(6))
    put_text(samples[2].path, "")
    in_memory = load_images(samples, (16, 16), memory_limit=6 * 16 * 16 * 3)
    on_disk = load_images(samples, (16, 16), memory_limit=6 * 16 * 16 * 3 - 1, cache=tmp_path / "cache")
    assert not isinstance(in_memory.pixels, np.memmap)
    assert isinstance(on_disk.pixels, np.memmap)
    np.testing.assert_array_equal(in_memory.pixels, on_disk.pixels)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve disk space")
def test_a_full_disk_raises_an_error_and_does_not_kill_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_progress_is_shown_only_if_requested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    samples = put_samples(tmp_path, range(2))
    load_images(samples, (16, 16))
    assert capsys.readouterr() == ("", "")
    load_images(samples, (16, 16), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading images" in err
