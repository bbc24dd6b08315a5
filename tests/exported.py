"""A small exported model, made without torch: an image's score is the brightest pixel's mean over the channels."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from metalad.inference.model import Header
from metalad.methods.metal import MetalConfig
from metalad.storage.exported_metadata import ExportedMetadata, with_metadata

SIZE = (32, 24)
THRESHOLD = 0.75
NORMAL_SCORES = (0.25, 0.5, 0.625, 0.6875)


def exported_metadata(**changed: Any) -> ExportedMetadata:
    config = MetalConfig(image_size=(32, 32), patch_size=8, width=16, hidden_width=32, smoothing_sigma=1.0)
    header = Header(
        method="metal",
        config=asdict(config),
        calibration={"kind": "none", "log_likelihood": {}},
        category="noise",
        seed=0,
        protocol="default",
        training={},
        images={"training": 8, "validation": 4, "skipped": 0},
        training_hash="ab" * 32,
        versions={},
        false_alarms=0.2,
        thresholds={"calibrated": THRESHOLD},
    )
    values: dict[str, Any] = {
        "header": header,
        "model_sha256": "cd" * 32,
        "scoring": "calibrated",
        "threshold": THRESHOLD,
        "thresholds": {"0.1": 0.875, "0.5": 0.5625},
        "normal_scores": NORMAL_SCORES,
        "precision": "fp32",
        "opset": 18,
        "tolerance": 1e-4,
        "difference": 0.0,
        "images": 4,
    }
    return ExportedMetadata(**values | changed)


def exported_bytes(size: tuple[int, int] = SIZE) -> bytes:
    """An ONNX model without metadata."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "channels"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "white"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map", "plane"], ["score"], keepdims=0),
        helper.make_node("Greater", ["score", "threshold"], ["anomalous"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *size, 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["batch", *size]),
            helper.make_tensor_value_info("anomalous", TensorProto.BOOL, ["batch"]),
        ],
        [
            helper.make_tensor("channels", TensorProto.INT64, [1], [3]),
            helper.make_tensor("plane", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]),
            helper.make_tensor("threshold", TensorProto.FLOAT, [], [THRESHOLD]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def exported_onnx(path: Path) -> Path:
    """Write the model as an ONNX file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(with_metadata(exported_bytes(), exported_metadata()))
    return path


def exported_openvino(path: Path) -> Path:
    """Write the model as a pair of OpenVINO files."""
    import openvino

    from metalad.storage.exported_metadata import openvino_digest

    source = path.with_suffix(".onnx")
    source.write_bytes(exported_bytes())
    model = openvino.convert_model(source)
    openvino.save_model(model, path, compress_to_fp16=False)
    digest = openvino_digest(path, exported_metadata())
    model.set_rt_info(exported_metadata(sha256=digest).to_json(), ["metalad"])
    openvino.save_model(model, path, compress_to_fp16=False)
    source.unlink()
    return path


def score_of(pixels: np.ndarray) -> float:
    return float(pixels.mean(-1).max() / 255)
