"""Formats beyond PNG, JPEG, BMP, TIFF and WebP, the limit of pixels, and files that are left out."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from metalad.data import decoding, formats
from metalad.data.formats import FORMATS, Format, readable_names
from metalad.data.images import find_images, image_size, read_image
from metalad.data.products import iter_products
from metalad.data.walking import LeftOut, walk
from metalad.runtime.errors import ConfigError, ImageError
from tests.data.folders import put_image, put_mask
from tests.data.pictures import encoded, one_bit_png, put, smooth_picture

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
needs_jpeg_2000 = pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow was built without JPEG 2000")
HEIC_START = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"
JXL_START = b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(20)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JFIF"])
def test_other_suffixes_of_jpeg_are_read(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path / f"a{suffix}", encoded(smooth_picture(), "JPEG", quality=95))
    assert find_images(tmp_path) == [path]
    np.testing.assert_allclose(read_image(path), smooth_picture(), atol=12)


@needs_avif
def test_avif_is_read(tmp_path: Path) -> None:
    path = put(tmp_path / "a.avif", encoded(smooth_picture(), "AVIF", quality=95))
    assert find_images(tmp_path) == [path]
    assert image_size(path) == (24, 40)
    np.testing.assert_allclose(read_image(path), smooth_picture(), atol=16)


@needs_avif
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_avif_is_rotated_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(smooth_picture(), {3: 2, 6: 1, 8: -1}[orientation])
    path = put(tmp_path / "a.avif", encoded(np.ascontiguousarray(stored), "AVIF", quality=95, exif=exif))
    assert image_size(path) == (24, 40)
    np.testing.assert_allclose(read_image(path), smooth_picture(), atol=16)


@needs_avif
def test_avif_with_a_general_brand_is_read(tmp_path: Path) -> None:
    content = encoded(smooth_picture(), "AVIF", quality=95)
    assert content[8:12] == b"avif"
    path = put(tmp_path / "a.avif", content[:8] + b"mif1" + content[12:])
    np.testing.assert_allclose(read_image(path), smooth_picture(), atol=16)


@needs_jpeg_2000
@pytest.mark.parametrize("name", ["a.jp2", "a.j2k"])
def test_jpeg_2000_is_read(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    buffer.name = name
    Image.fromarray(smooth_picture()).save(buffer, "JPEG2000")
    path = put(tmp_path / name, buffer.getvalue())
    assert find_images(tmp_path) == [path]
    assert image_size(path) == (24, 40)
    np.testing.assert_array_equal(read_image(path), smooth_picture())


@needs_jpeg_2000
def test_16_bit_jpeg_2000_is_scaled_by_its_full_range(tmp_path: Path) -> None:
    grey = np.arange(96, dtype=np.uint16).reshape(8, 12) * 257
    path = put(tmp_path / "a.jp2", encoded(grey, "JPEG2000"))
    np.testing.assert_array_equal(read_image(path)[:, :, 1], np.arange(96).reshape(8, 12))


@pytest.mark.parametrize(
    ("name", "start", "package"),
    [
        ("HEIC", HEIC_START, "pillow-heif"),
        ("JPEG XL", JXL_START, "pillow-jxl-plugin"),
        ("JPEG XL", b"\xff\x0a" + bytes(9), "pillow-jxl-plugin"),
    ],
)
def test_the_error_names_the_missing_plug_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: bytes, package: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImageError, match=f"a {name} image; install {package} to read it"):
        read_image(put(tmp_path / "a.png", start))


@pytest.mark.parametrize(("name", "module"), [("HEIC", "pillow_heif"), ("JPEG XL", "pillow_jxl")])
def test_an_installed_plug_in_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    """With a module of the plug-in's name in its place, which decodes a PNG after the signature."""
    (kind,) = (each for each in FORMATS if each.name == name)
    start = HEIC_START if name == "HEIC" else JXL_START
    code = (
        "import io\nfrom PIL.PngImagePlugin import PngImageFile\n"
        f"def {kind.decoder}(file):\n    return PngImageFile(io.BytesIO(file.read()[{len(start)}:]))\n"
    )
    (tmp_path / module).mkdir()
    file = kind.module.partition(".")[2] or "__init__"
    (tmp_path / module / "__init__.py").touch()
    (tmp_path / module / f"{file}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    assert kind.is_readable
    assert name in readable_names()
    path = put(tmp_path / "a.image", start + encoded(smooth_picture(), "PNG"))
    np.testing.assert_array_equal(read_image(path), smooth_picture())
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == module]:
        del sys.modules[loaded]


@pytest.mark.parametrize("suffix", [".heic", ".jxl"])
def test_real_files_are_read_where_the_plug_in_is_installed(tmp_path: Path, suffix: str) -> None:
    (kind,) = (each for each in FORMATS if suffix in each.suffixes)
    if not kind.is_readable:
        pytest.skip(f"{kind.package} is not installed")
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    else:
        pytest.importorskip("pillow_jxl")
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth_picture()).save(path, quality=95)
    assert find_images(tmp_path) == [path]
    assert image_size(path) == (24, 40)
    assert np.abs(read_image(path).astype(int) - smooth_picture()).mean() < 4


def left_out_of(folder: Path) -> str | None:
    left_out = LeftOut()
    for _ in walk(folder, left_out):
        pass
    return left_out.text()


def test_files_that_are_left_out_are_counted_by_their_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_image(tmp_path / "a.png")
    assert left_out_of(tmp_path) is None
    for name in ("1.gif", "2.GIF", "sub/3.gif", "4.heic", "raw/5.NEF", "noend"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("readme.txt", "labels.csv", "Thumbs.db", "LICENSE", ".DS_Store", "x.json"):
        (tmp_path / name).touch()
    (tmp_path / "dead.png").symlink_to("nowhere.png")
    (tmp_path / "round.png").symlink_to("round.png")
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr(formats, "IMAGE_SUFFIXES", frozenset({".png"}))
    monkeypatch.setattr("metalad.data.walking.IMAGE_SUFFIXES", frozenset({".png"}))
    monkeypatch.setattr(formats, "_MISSING", {".heic": "pillow-heif"})
    assert left_out_of(tmp_path) == (
        "9 files left out: 3 .gif, 2 dead links, 1 .heic, 1 .nef, 1 special file, 1 without suffix "
        "(install pillow-heif to read them)"
    )


def test_a_single_file_that_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("nowhere.png")
    assert left_out_of(tmp_path) == "1 file left out: 1 dead link"


@pytest.mark.parametrize("name", ["@eaDir", ".thumbnails", "__MACOSX", "#recycle", "$RECYCLE.BIN"])
def test_folders_of_network_drives_are_ignored(tmp_path: Path, name: str) -> None:
    put_image(tmp_path / "a.png")
    put_image(tmp_path / name / "b.png")
    (tmp_path / name / "c.gif").touch()
    assert find_images(tmp_path) == [tmp_path / "a.png"]
    assert left_out_of(tmp_path) is None


def test_masks_are_no_products(tmp_path: Path) -> None:
    for seed, name in enumerate(("000.png", "000/x.png", "a_label.png", "a.png", "labels/front.png", "masks/side.png")):
        put_image(tmp_path / name, seed)
    for name in ("000_mask.png", "mask_a.png", "ground_truth/crack/1.png", "labels/1.png", "orphan_mask.png"):
        put_mask(tmp_path / name)
    left_out = LeftOut()
    found = [path.relative_to(tmp_path).as_posix() for path in iter_products(tmp_path, left_out)]
    assert found == [
        "000.png",
        "000/x.png",
        "a.png",
        "a_label.png",
        "labels/front.png",
        "masks/side.png",
        "orphan_mask.png",
    ]
    assert left_out.text() == "4 files left out: 4 masks"
    assert list(iter_products(tmp_path / "ground_truth", LeftOut())) == []


# The limit of pixels


def test_the_environment_raises_the_limit_of_pixels(tmp_path: Path) -> None:
    path = put(tmp_path / "large.png", one_bit_png(16_000, 10_000))
    code = (
        f"from pathlib import Path; from metalad.data.images import image_size; print(image_size(Path({str(path)!r})))"
    )
    run = [sys.executable, "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != decoding.LIMIT_VARIABLE}
    refused = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert "more than the limit of 150,000,000 (a decompression bomb?)" in refused.stderr
    assert "or set METALAD_MAX_MEGAPIXELS to a larger number" in refused.stderr
    raised = environment | {decoding.LIMIT_VARIABLE: "160"}
    assert subprocess.run(run, env=raised, capture_output=True, text=True, check=True).stdout == "(10000, 16000)\n"


def test_a_raised_limit_also_raises_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [put(tmp_path / kind, encoded(smooth_picture(), kind)) for kind in ("WEBP", "TIFF")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    for path in paths:
        with pytest.raises(ImageError, match="more than the limit"):
            read_image(path)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 400_000_000)
    for path in paths:
        assert read_image(path).shape == (24, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 9


def test_the_limit_is_a_positive_number() -> None:
    assert (
        decoding.max_pixels(None),
        decoding.max_pixels(""),
        decoding.max_pixels("0.5"),
        decoding.max_pixels("400"),
    ) == (
        150_000_000,
        150_000_000,
        500_000,
        400_000_000,
    )
    for text in ("many", "0", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match=r"METALAD_MAX_MEGAPIXELS is .*; it must be a positive number"):
            decoding.max_pixels(text)


def test_each_suffix_belongs_to_one_format() -> None:
    suffixes = [suffix for kind in FORMATS for suffix in kind.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert all(isinstance(kind, Format) and suffix == suffix.lower() for kind in FORMATS for suffix in kind.suffixes)
