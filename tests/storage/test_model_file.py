"""The model file: content, checksum, refusal of damaged and foreign files, and thresholds."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from metalad.detectors.base import SCORINGS, Detector
from metalad.detectors.calibration import KINDS, Calibration, Kind
from metalad.inference.model import FORMAT, Header
from metalad.inference.threshold import smallest_supported_rate
from metalad.methods.metal import Metal
from metalad.nn.pixels import to_batch
from metalad.runtime.errors import ConfigError, ModelFileError
from metalad.storage.model_file import FILE_NAME, find_model, read_model, summary, write_model
from tests.cookies import cookies
from tests.tiny import TINY


def trained(kind: Kind = "position") -> Detector:
    """Return a detector with random weights, calibrated, with scores for its threshold."""
    torch.manual_seed(0)
    detector = Metal(TINY).eval()
    detector.conclude(cookies(6), cookies(8)[6:])
    with torch.no_grad():
        detector.calibration = Calibration.fit(kind, detector.residuals(to_batch(cookies(4))))
    for index, scoring in enumerate(SCORINGS):
        detector.register_buffer(f"normal_scores_{scoring}", torch.tensor([1.0, 2.0, 3.0]) + index)
    return detector


def header(kind: Kind = "position") -> Header:
    return Header(
        method="metal",
        config=dataclasses.asdict(TINY),
        calibration={"kind": kind, "log_likelihood": {"none": 1.25, "position": 2.5}},
        category="cookie",
        seed=7,
        protocol="default",
        training={"max_epochs": 3},
        images={"training": 11, "validation": 1, "skipped": 0},
        training_hash="0" * 64,
        versions={"metalad": "0"},
        false_alarms=0.01,
        thresholds={"calibrated": 4.0, "raw": 5.0},
    )


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a valid model file."""
    path = tmp_path_factory.mktemp("model") / FILE_NAME
    write_model(path, trained(), header())
    return path.read_bytes()


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[bytes], str]:
    """Read a file of the given bytes, which must fail, and return the error message."""

    def read(content: bytes) -> str:
        path = tmp_path / "any.safetensors"
        path.write_bytes(content)
        with pytest.raises(ModelFileError) as caught:
            read_model(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    return read


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_model_equals_the_written_one_in_every_bit(tmp_path: Path, kind: Kind) -> None:
    written, path = trained(kind), tmp_path / "run" / FILE_NAME
    write_model(path, written, header(kind))
    model = read_model(path.parent)
    assert dataclasses.asdict(model.header) == json.loads(json.dumps(dataclasses.asdict(header(kind))))
    assert model.path == path
    assert not model.detector.training
    assert model.detector.config == TINY
    for (name, one), (other_name, other) in zip(
        sorted(written.state_dict().items()), sorted(model.detector.state_dict().items()), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other), name
    images = to_batch(cookies(6))
    with torch.no_grad():
        for one, other in zip(written(images), model.detector(images), strict=True):
            assert torch.equal(one, other)
    write_model(tmp_path / "again", model.detector, model.header)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    """The library safetensors writes the metadata in a random order."""
    detector, files = trained(), set()
    for _ in range(12):
        write_model(tmp_path / "model", detector, header())
        files.add((tmp_path / "model").read_bytes())
    assert len(files) == 1


def test_the_file_is_a_valid_safetensors_file(content: bytes) -> None:
    """The library safetensors can read tensors and header."""
    names = set(load(content))
    assert {"decoder.0.weight", "calibration.whitening", "normal_scores_raw"} <= names
    end = 8 + int.from_bytes(content[:8], "little")
    assert end % 8 == 0
    metadata = json.loads(content[8:end])["__metadata__"]
    assert list(metadata) == ["metalad", "sha256"]
    assert json.loads(metadata["metalad"])["format"] == FORMAT


def test_any_altered_byte_of_the_header_is_detected(content: bytes, refused: Callable[[bytes], str]) -> None:
    end = 8 + int.from_bytes(content[:8], "little")
    for position in [*range(16), *range(16, end, 11)]:
        for change in (0x01, 0x80):
            altered = bytearray(content)
            altered[position] ^= change
            refused(bytes(altered))


def test_any_altered_byte_of_a_tensor_is_detected(content: bytes, refused: Callable[[bytes], str]) -> None:
    end = 8 + int.from_bytes(content[:8], "little")
    for position in [end, len(content) - 1, *np.random.default_rng(0).integers(end, len(content), 40)]:
        altered = bytearray(content)
        altered[position] ^= 0x10
        assert "checksum differs" in refused(bytes(altered))


def test_a_truncated_file_is_refused(content: bytes, refused: Callable[[bytes], str]) -> None:
    end = 8 + int.from_bytes(content[:8], "little")
    for length in [
        0,
        1,
        3,
        4,
        7,
        8,
        9,
        100,
        end - 1,
        end,
        end + 1,
        len(content) // 2,
        len(content) - 4,
        len(content) - 1,
    ]:
        assert "copy it again or train anew" in refused(content[:length])


def test_a_file_with_appended_bytes_is_refused(content: bytes, refused: Callable[[bytes], str]) -> None:
    refused(content + b"\0")
    refused(content + content)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, framed: bool) -> None:
    path = tmp_path_factory.mktemp("any") / "model"
    path.write_bytes(len(data).to_bytes(8, "little") + data if framed else data)
    with pytest.raises(ModelFileError):
        read_model(path)


def with_header(content: bytes, text: str) -> bytes:
    return save(load(content), {"metalad": text, "sha256": "0" * 64})


def test_a_newer_format_is_refused_with_a_remedy(content: bytes, refused: Callable[[bytes], str]) -> None:
    text = json.dumps({**dataclasses.asdict(header()), "format": FORMAT + 1, "new": "entry"})
    assert "install a newer metalad" in refused(with_header(content, text))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "3", "{", '{"format":', "[" * 100_000])
def test_an_invalid_header_is_refused(content: bytes, refused: Callable[[bytes], str], text: str) -> None:
    assert "header is damaged" in refused(with_header(content, text))


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("length", [0x10280, 0x10380, 0x10480, 0x10580])
def test_a_file_that_begins_like_a_pickle_by_its_length_is_read(content: bytes, tmp_path: Path, length: int) -> None:
    head = content[8 : 8 + int.from_bytes(content[:8], "little")].rstrip()
    longer = length - 3 - len(head)  # the head is padded with spaces to a multiple of 8 bytes
    padded = dataclasses.replace(header(), category="c" * (len("cookie") + longer))
    write_model(tmp_path / FILE_NAME, trained(), padded)
    assert (tmp_path / FILE_NAME).read_bytes()[:2] == length.to_bytes(8, "little")[:2]
    assert read_model(tmp_path).header.category == padded.category


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_without_opening_it(tmp_path: Path, refused: Callable[[bytes], str], protocol: int) -> None:
    message = refused(pickle.dumps(Touch(tmp_path / "touched"), protocol))
    assert not (tmp_path / "touched").exists()
    if protocol >= 2:  # the older protocols are text and cannot be recognized
        assert "never read" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_save_is_refused_without_opening_it(
    tmp_path: Path, refused: Callable[[bytes], str], zipped: bool
) -> None:
    torch.save(trained().state_dict(), tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    assert "never read" in refused((tmp_path / "model.pt").read_bytes())


def test_a_safetensors_file_of_another_program_is_refused(refused: Callable[[bytes], str]) -> None:
    assert "not written by metalad" in refused(save({"weight": torch.zeros(3)}))
    assert "not written by metalad" in refused(save({"weight": torch.zeros(3)}, {"format": "pt"}))


def test_a_missing_model_file_is_an_error_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=f"{tmp_path}: no {FILE_NAME} there; give a run folder"):
        read_model(tmp_path)
    (tmp_path / "run.json").touch()
    with pytest.raises(ModelFileError, match=f"{tmp_path}: no {FILE_NAME} there; train it first"):
        read_model(tmp_path)
    with pytest.raises(ModelFileError, match="give a run folder or a model file"):
        find_model(tmp_path / "missing")


def test_an_unreadable_model_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").write_bytes(b"x")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_model(tmp_path / "model")


def test_tensors_that_do_not_fit_the_settings_are_refused(tmp_path: Path) -> None:
    wider = dataclasses.asdict(dataclasses.replace(TINY, width=32))
    write_model(tmp_path / "model", trained(), dataclasses.replace(header(), config=wider))
    with pytest.raises(ModelFileError, match="not those of metal with its settings"):
        read_model(tmp_path / "model")


def test_a_model_of_an_unknown_method_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model", trained(), dataclasses.replace(header(), method="alchemy"))
    with pytest.raises(ConfigError, match="no method 'alchemy'; there are: metal"):
        read_model(tmp_path / "model")


def test_thresholds_depend_on_rate_and_scoring(tmp_path: Path) -> None:
    write_model(tmp_path / "model", trained(), header())
    model = read_model(tmp_path / "model")
    assert model.threshold() == model.threshold(0.01, "calibrated") == 4
    assert model.threshold(0.02) > model.threshold(0.1)
    assert model.threshold(scoring="raw") == 5
    assert (model.scoring(None), model.scoring("raw")) == ("calibrated", "raw")
    assert summary(model.header).kind == "position"
    for rate in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="probability between 0 and 1"):
            model.threshold(rate)


def test_the_stored_threshold_is_kept_for_its_own_rate(tmp_path: Path) -> None:
    """A file of an older version may hold a threshold by another rule."""
    older = dataclasses.replace(header(), thresholds={"calibrated": 123.5, "raw": 7.25})
    write_model(tmp_path / "model", trained(), older)
    model = read_model(tmp_path / "model")
    assert (model.threshold(), model.threshold(0.01, "raw")) == (123.5, 7.25)
    assert model.threshold(0.02) == model.detector.threshold(0.02, "calibrated")


def test_a_rate_that_the_images_do_not_support_gives_a_warning(tmp_path: Path) -> None:
    detector = trained()
    images = len(detector.get_buffer("normal_scores_calibrated"))
    write_model(tmp_path / "model", detector, header())
    model = read_model(tmp_path / "model")
    supported = smallest_supported_rate(images)
    warning = model.caution(0.5 / images)
    assert warning is not None
    assert f"{images} good images" in warning.text
    assert warning.text.endswith(f"--false-alarms {supported:g} (threshold {model.threshold(supported):.4g})")
    assert model.caution(supported) is None
