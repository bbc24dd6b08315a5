"""Writing of exported files, with their metadata."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from metalad.runtime.errors import ConfigError
from metalad.runtime.packages import require_packages
from metalad.storage.exported_metadata import KEY, ExportedMetadata, openvino_digest, with_metadata

if TYPE_CHECKING:
    from onnx import ModelProto


def require_writer(suffix: str) -> None:
    """Check that files with this suffix can be written.

    Raises:
        ConfigError: the suffix is .xml, and openvino is not installed.
    """
    if suffix == ".xml":
        require_packages("`metalad export`", {"openvino": "openvino"}, "install metalad[openvino]")


def write_graph(graph: "ModelProto", path: Path) -> None:
    """Write a graph without metadata: as ONNX, or, if the path ends with .xml, as OpenVINO's .xml and .bin.

    Raises:
        ConfigError: openvino is needed, and not installed, or cannot read the graph.
    """
    if path.suffix == ".onnx":
        path.write_bytes(graph.SerializeToString())
        return
    require_writer(path.suffix)
    import openvino

    # Not `openvino.convert_model`, which reports its use over the network, unless that is turned off.
    try:
        model = openvino.Core().read_model(graph.SerializeToString(), b"")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(f"OpenVINO cannot read the graph of this model ({reason}); export it as .onnx") from error
    # fp16 is in the graph already, where it was decided which constants keep 32 bits.
    openvino.save_model(model, path, compress_to_fp16=False)


def add_metadata(path: Path, metadata: ExportedMetadata) -> None:
    """Add the metadata, with the checksum of what `write_graph` wrote, to an ONNX or .xml file."""
    if path.suffix == ".onnx":
        path.write_bytes(with_metadata(path.read_bytes(), metadata))
        return
    tree = ElementTree.parse(path)
    root = tree.getroot()
    information = root.find("rt_info")
    if information is None:
        information = ElementTree.SubElement(root, "rt_info")
    text = dataclasses.replace(metadata, sha256=openvino_digest(path, metadata)).to_json()
    ElementTree.SubElement(information, KEY, value=text)
    tree.write(path, encoding="utf-8", xml_declaration=True)
