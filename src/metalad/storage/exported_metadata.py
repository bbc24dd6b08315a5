"""What an exported file states about its model, and where it stands in the file; without torch and without onnx.

An ONNX file ends with a metadata entry `metalad`, a JSON object: a repeated field of a protobuf message may be appended
to the encoded message. An OpenVINO model is a pair of files, NAME.xml and NAME.bin; the entry is the value of `metalad`
in the run-time information of the .xml. `sha256` in the entry covers all that is before the entry or beside it, and the
other values of the entry.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from metalad.inference.model import Header
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import ModelFileError

EXPORT_FORMAT = 1
KEY = "metalad"
RATES = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""False-alarm rates whose thresholds are stored: computing another one needs scipy."""
_METADATA_FIELD = 14 << 3 | 2  # of ModelProto: metadata_props, length-delimited
_KEY_BYTES = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12"


@dataclass(frozen=True, kw_only=True)
class ExportedMetadata:
    """What an exported file states about its model.

    header: of the trained model, without the hashes of its images. model_sha256: of the trained model's file, or "".
    scoring: the one that the file computes. threshold: the one that its verdicts are made with.
    thresholds: by false-alarm rate (see `RATES`). normal_scores: see `ScoringModel.normal_scores`.
    precision: of the file. opset: of ONNX. tolerance: the largest relative difference of a score from the trained
    model's that the export accepted. difference: the largest that it measured. images: it was measured on.
    sha256: of the file and of the other values of this entry.
    """

    format: int = EXPORT_FORMAT
    header: Header
    model_sha256: str
    scoring: Scoring
    threshold: float
    thresholds: Mapping[str, float]
    normal_scores: Sequence[float]
    precision: str
    opset: int
    tolerance: float
    difference: float
    images: int
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sha256: str = ""

    @property
    def image_scale(self) -> float:
        """The setting of that name, see `metalad.data.framing`."""
        return float(self.header.config.get("image_scale", 0.0))

    def to_json(self) -> str:
        """Return the metadata as a JSON object."""
        values = dataclasses.asdict(self) | {"header": self.header.to_dict()}
        return json.dumps(values, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, path: Path) -> "ExportedMetadata":
        """Read `to_json`.

        Raises:
            ModelFileError: it is damaged, or of a newer format.
        """
        try:
            values = json.loads(text)
            if values["format"] > EXPORT_FORMAT:
                raise ModelFileError(f"{path}: was exported by a newer metalad; install that, or export again")
            values["header"] = Header(**values["header"])
            return cls(**values)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ModelFileError(f"{path}: its metadata is damaged; copy it again, or export again") from None


def with_metadata(onnx: bytes, metadata: ExportedMetadata) -> bytes:
    """Return an encoded ONNX model with the metadata at its end."""
    text = dataclasses.replace(metadata, sha256=_digest(metadata, onnx)).to_json().encode()
    entry = _KEY_BYTES + _varint(len(text)) + text
    return onnx + bytes([_METADATA_FIELD]) + _varint(len(entry)) + entry


def onnx_metadata(content: bytes, path: Path) -> ExportedMetadata:
    """Return the metadata of an ONNX file, whose content was checked against it.

    Raises:
        ModelFileError: not a file that `metalad export` wrote, or altered since.
    """
    start = content.rfind(_KEY_BYTES)
    if start < 0:
        raise ModelFileError(
            f"{path}: truncated, or not an ONNX file that `metalad export` wrote; copy it again, or export again"
        )
    length, text_start = _read_varint(content, start + len(_KEY_BYTES))
    text = content[text_start:]
    head = bytes([_METADATA_FIELD]) + _varint(len(content) - start)
    body = content[: start - len(head)]
    metadata = ExportedMetadata.from_json(text.decode(errors="replace"), path)
    if length != len(text) or content[len(body) : start] != head or _digest(metadata, body) != metadata.sha256:
        raise ModelFileError(f"{path}: altered since it was exported (its checksum differs); copy it again")
    return metadata


def openvino_metadata(xml: Path) -> ExportedMetadata:
    """Return the metadata of an OpenVINO model, whose two files were checked against it.

    Raises:
        ModelFileError: not files that `metalad export` wrote, or altered since; or the .bin is missing.
        OSError: a file cannot be read.
    """
    try:
        root = ElementTree.fromstring(xml.read_bytes())
    except ElementTree.ParseError:
        raise ModelFileError(f"{xml}: damaged, or not an OpenVINO model; copy it again, or export again") from None
    entry = root.find(f"rt_info/{KEY}")
    if entry is None:
        raise ModelFileError(f"{xml}: not a model that `metalad export` wrote; export one")
    if not xml.with_suffix(".bin").is_file():
        raise ModelFileError(f"{xml}: the weights, {xml.with_suffix('.bin').name}, are missing beside it; copy both")
    metadata = ExportedMetadata.from_json(entry.get("value", ""), xml)
    if openvino_digest(xml, metadata) != metadata.sha256:
        raise ModelFileError(f"{xml}: altered since it was exported, or with another .bin (the checksum differs)")
    return metadata


def openvino_digest(xml: Path, metadata: ExportedMetadata) -> str:
    """Return the SHA-256 of an OpenVINO model's two files without their metadata entry, and of the metadata."""
    root = ElementTree.fromstring(xml.read_bytes())
    information = root.find("rt_info")
    if information is not None:
        for entry in information.findall(KEY):
            information.remove(entry)
    # Whitespace is removed, because it depends on whether the entry is there.
    for element in root.iter():
        element.text, element.tail = (element.text or "").strip(), None
    return _digest(metadata, ElementTree.tostring(root), xml.with_suffix(".bin").read_bytes())


def _digest(metadata: ExportedMetadata, *parts: bytes) -> str:
    digest = hashlib.sha256(dataclasses.replace(metadata, sha256="").to_json().encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _read_varint(content: bytes, start: int) -> tuple[int, int]:
    """Return a number and the position after it."""
    value = shift = 0
    for position in range(start, min(start + 10, len(content))):
        value |= (content[position] & 0x7F) << shift
        shift += 7
        if content[position] < 0x80:
            return value, position + 1
    return 0, len(content)
