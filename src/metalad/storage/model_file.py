"""The model file: tensors as safetensors, everything else as one JSON header inside it; never pickle.

A file holds `metalad` (the header, JSON) and `sha256` (of header and tensors) in the metadata of safetensors. Nothing
in it depends on the clock or on a path: equal training gives equal bytes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metalad.detectors.base import Detector, Scoring
from metalad.detectors.calibration import Calibration, CalibrationSummary
from metalad.detectors.inference import DetectorEngine
from metalad.inference.engine import Engine
from metalad.inference.model import FORMAT, Header, ScoringModel
from metalad.methods import method_named
from metalad.nn.fitted import load_fitted
from metalad.runtime.errors import ModelFileError
from metalad.runtime.files import write_bytes
from metalad.runtime.settings import from_json
from metalad.storage.migration import OLDEST_FORMAT, complete_settings, migrate_header, migrate_tensors
from metalad.storage.run_folder import SETTINGS_NAME

FILE_NAME = "model.safetensors"
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@dataclass(frozen=True, eq=False)
class StoredModel(ScoringModel):
    """A detector ready for inference, the header of its file, and the file's path (None if it is not stored)."""

    detector: Detector
    header: Header
    path: Path | None

    @property
    def engine(self) -> Engine:
        """The detector as an engine."""
        return DetectorEngine(self.detector)

    def normal_scores(self, scoring: Scoring) -> Float[np.ndarray, " images"]:
        """Return image scores of good images that took no part in what they are scored by."""
        return self.detector.get_buffer(f"normal_scores_{scoring}").numpy(force=True)


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
        begun = (path / SETTINGS_NAME).is_file()
        hint = "train it first, or continue with `--resume`" if begun else "give a run folder or a model file"
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
        raise ModelFileError(
            f"{file}: its tensors are not those of {header.method} with its settings; a model of a development version "
            "must be trained again"
        ) from error
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
    config = complete_settings(values["method"], values["config"])
    return Header(**{**values, "config": config}), _complete_tensors(values["method"], tensors)


def _complete_tensors(method: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of any format with those that did not exist when they were written."""
    if method != "metal_features" or "context_weight" in tensors:
        return dict(tensors)
    return _with_separate_context(tensors)


def _with_separate_context(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in which context prediction has a weight and a scale of its own, not those of the fourth density.

    Without context prediction its weight is 0. Tensors that are not those of the method are returned as they are.
    """
    names = ("density_weights", "log_distance.mean", "log_distance.scale")
    vectors = {name: tensors[name] for name in names if name in tensors}
    has_context = "densities.context.mean" in tensors
    if [len(values) for values in vectors.values()] != 3 * [5 if has_context else 4]:
        return dict(tensors)
    own = torch.tensor([0, 1, 2, 4] if has_context else [0, 1, 2, 3])
    separate = {name: values[own] for name, values in vectors.items()}
    weight, mean, scale = (values[3] if has_context else torch.tensor(0.0) for values in vectors.values())
    return {
        **tensors,
        **separate,
        "context_weight": weight,
        "context_scale": torch.tensor(1.0),
        "context_log_distance.mean": mean[None],
        "context_log_distance.scale": scale[None] if has_context else torch.ones(1),
    }


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
