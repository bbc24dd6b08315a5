"""The model file: tensors as safetensors, everything else as one JSON header inside it; never pickle.

A file holds `metalad` (the header, JSON) and `sha256` (of header and tensors) in the metadata of safetensors. Nothing
in it depends on the clock or on a path: equal training gives equal bytes.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metalad.data.reading import FULL_RANGE
from metalad.detectors.base import Detector, Scoring
from metalad.detectors.calibration import Calibration, CalibrationSummary
from metalad.detectors.threshold import smallest_supported_rate
from metalad.methods import method_named
from metalad.nn.fitted import load_fitted
from metalad.results.caution import Caution, extrapolation_caution
from metalad.runtime.errors import ConfigError, ModelFileError
from metalad.runtime.files import write_bytes
from metalad.runtime.settings import check_choice, from_json, number, rate
from metalad.storage.migration import OLDEST_FORMAT, migrate_header, migrate_tensors

FORMAT = 6
FILE_NAME = "model.safetensors"
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The contents of a model file apart from its tensors.

    training_hash: sha256 over the training images' names and contents.
    thresholds: image scores above which an image is anomalous, one for each scoring, at the rate `false_alarms`.
    white_level: the value of 16-bit image files that is read as 255.
    image_hashes: of the pixels of each training and validation image, see `metalad.data.likeness.pixel_hash`.
    """

    format: int = FORMAT
    method: str
    config: Mapping[str, Any]
    calibration: Mapping[str, Any]
    category: str
    seed: int
    protocol: str
    training: Mapping[str, Any]
    images: Mapping[str, int]
    training_hash: str
    versions: Mapping[str, str]
    false_alarms: float
    thresholds: Mapping[str, float]
    white_level: int = FULL_RANGE
    image_hashes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields without the hashes, which may be many, as JSON's own types."""
        values = dataclasses.asdict(self)
        del values["image_hashes"]
        return values


@dataclass(frozen=True)
class StoredModel:
    """A detector ready for inference, the header of its file, and the file's path (None if it is not stored)."""

    detector: Detector
    header: Header
    path: Path | None

    def scoring(self, wanted: Scoring | None) -> Scoring:
        """Return the wanted scoring, by default the model's own.

        Raises:
            ConfigError: no such scoring.
        """
        if wanted is None:
            return self.detector.config.scoring
        check_choice("scoring", wanted, Scoring)
        return wanted

    def threshold(self, false_alarms: float | None = None, scoring: Scoring | None = None) -> float:
        """Return the image score that good images exceed with probability `false_alarms`, by default the model's own.

        Raises:
            ConfigError: `false_alarms` is not between 0 and 1, or no such scoring.
        """
        wanted, name = self.rate(false_alarms), self.scoring(scoring)
        if wanted == self.header.false_alarms and name in self.header.thresholds:
            return self.header.thresholds[name]  # an older version may have computed it by another rule
        return self.detector.threshold(wanted, name)

    def threshold_or(
        self, threshold: float | None, false_alarms: float | None = None, scoring: Scoring | None = None
    ) -> float:
        """Return the given threshold, or else the one for a false-alarm rate.

        Raises:
            ConfigError: both are given, or the threshold is not a positive finite number; or as of `threshold`.
        """
        if threshold is None:
            return self.threshold(false_alarms, scoring)
        if false_alarms is not None:
            raise ConfigError("threshold and false_alarms exclude each other; give one")
        self.scoring(scoring)
        value = number("threshold", threshold)
        if not 0 < value < math.inf:
            raise ConfigError(f"threshold is {threshold}; it must be a score above 0")
        return value

    def rate(self, false_alarms: float | None = None) -> float:
        """Return a false-alarm rate, by default the model's own.

        Raises:
            ConfigError: `false_alarms` is not between 0 and 1.
        """
        return self.header.false_alarms if false_alarms is None else rate("false_alarms", false_alarms)

    def caution(self, false_alarms: float | None = None, scoring: Scoring | None = None) -> Caution | None:
        """Return a caution if the good images are too few to support a false-alarm rate, else None."""
        scores = self.detector.get_buffer(f"normal_scores_{self.scoring(scoring)}")
        supported = smallest_supported_rate(len(scores))
        return extrapolation_caution(
            images=len(scores),
            rate=self.rate(false_alarms),
            threshold=self.threshold(false_alarms, scoring),
            highest=float(scores.max()),
            alternative=(supported, self.threshold(supported, scoring)),
        )


def write_model(path: Path, detector: Detector, header: Header) -> None:
    """Write the model file, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    text = json.dumps(dataclasses.asdict(header), sort_keys=True, allow_nan=False)
    write_bytes(path, _in_order(save(tensors, {"metalad": text, "sha256": _digest(text, tensors)})))


def _in_order(content: bytes) -> bytes:
    """Sort the metadata at the head of a safetensors file; `save` writes them in a random order."""
    end = 8 + int.from_bytes(content[:8], "little")
    head = json.loads(content[8:end])
    head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def find_model(path: Path) -> Path:
    """Return the model file of a run folder, or the file itself.

    Raises:
        ModelFileError: neither is there.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        hint = "train it first, or continue with `--resume`" if path.is_dir() else "give a run folder or a model file"
        raise ModelFileError(f"{path}: no {FILE_NAME} there; {hint}")
    return file


def read_model(path: Path, device: str = "cpu") -> StoredModel:
    """Read a run folder or a model file.

    Raises:
        ModelFileError: the file is missing, truncated, altered, not metalad's, a pickle, or of a newer format.
        ConfigError: its method is not installed here.
    """
    file = find_model(path)
    header, tensors = _read(file)
    known = method_named(header.method)
    detector = known.load()(from_json(known.load_config(), header.config))
    detector.calibration = _unfitted_calibration(header.calibration["kind"], tensors, detector.config.residual_size)
    try:
        load_fitted(detector, tensors)
    except RuntimeError as error:
        raise ModelFileError(f"{file}: its tensors are not those of {header.method} with its settings") from error
    return StoredModel(detector.to(device).eval(), header, file)


def summary(header: Header) -> CalibrationSummary:
    """Return the selected calibration, and the likelihoods that selected it."""
    return CalibrationSummary(**header.calibration)


def _read(file: Path) -> tuple[Header, dict[str, Tensor]]:
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read ({error.strerror}); see to its permissions") from error
    # A safetensors file begins with the length of its head, which may be any bytes, and then the head's brace.
    if start.startswith(PICKLE_STARTS) and start[8:] != b"{":
        raise ModelFileError(
            f"{file}: this is a pickle or a zip archive, which can run code when opened, and is never read; "
            "train the model with metalad, which writes safetensors"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(f"{file}: damaged or not a model file ({error}); copy it again or train anew") from error
    if "metalad" not in metadata:
        raise ModelFileError(f"{file}: safetensors, but not written by metalad; train the model with metalad")
    number = _format_of(file, metadata["metalad"])
    if metadata.get("sha256") != _digest(metadata["metalad"], tensors):
        raise ModelFileError(
            f"{file}: altered since it was written (its checksum differs); copy it again or train anew"
        )
    values = json.loads(metadata["metalad"])
    if number <= OLDEST_FORMAT:
        values, tensors = migrate_header(values), migrate_tensors(values["method"], tensors)
    return Header(**values), tensors


def _format_of(file: Path, text: str) -> int:
    """Return the format of a model file, which can be read.

    Raises:
        ModelFileError: the header is damaged, or of a format that cannot be read.
    """
    try:
        number = int(json.loads(text)["format"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelFileError(f"{file}: its header is damaged; copy it again or train anew") from None
    if not OLDEST_FORMAT <= number <= FORMAT:
        remedy = "install a newer metalad" if number > FORMAT else "train the model again"
        raise ModelFileError(f"{file}: has format {number}, this metalad reads {OLDEST_FORMAT} to {FORMAT}; {remedy}")
    return number


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _unfitted_calibration(kind: Any, tensors: Mapping[str, Tensor], size: tuple[int, int]) -> Calibration | None:
    if kind == "own":
        return None
    joined = tensors.get("calibration.log_distance.mean")
    return Calibration.unfitted(kind, size, 1 if joined is None else len(joined))
