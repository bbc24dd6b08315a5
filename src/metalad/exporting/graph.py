"""The ONNX graph of a detector: from uint8 pixels to score, anomaly map and verdict."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from metalad.detectors.base import Detector
from metalad.runtime.errors import ConfigError
from metalad.runtime.packages import require_packages

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.onnx import ONNXProgram

OPSET = 18
"""Version of the ONNX operators: the lowest that the exporter writes without conversion."""
PACKAGES = {name: name for name in ("onnx", "onnxscript", "onnxruntime")}
"""What writes and runs graphs."""
INPUT, OUTPUTS = "pixels", ("score", "anomaly_map", "anomalous")
MAX_BYTES = 2**31 - 2**20
"""Maximum size of an encoded ONNX file: protobuf reads no message of 2 GiB."""
EXAMPLES = 2
"""Images in the batch that is traced: the tracer takes a batch size of 1 as a constant."""


class DetectorGraph(nn.Module):
    """A detector with the conversion of pixels before it, and the comparison with the threshold after it."""

    def __init__(self, detector: Detector, threshold: float) -> None:
        super().__init__()
        self.detector = detector
        self.limit = largest_float32(threshold)

    def forward(
        self, pixels: UInt8[Tensor, "batch height width 3"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch height width"], Bool[Tensor, " batch"]]:
        """Return scores, anomaly maps and verdicts of RGB images of the detector's size."""
        prediction = self.detector(pixels.permute(0, 3, 1, 2).contiguous().float() / 255)
        return prediction.score, prediction.anomaly_map, prediction.score > self.limit


def largest_float32(threshold: float) -> float:
    """Return the largest float32 number that is not above a threshold.

    A float32 score is above this number if and only if it is above the threshold.
    """
    with np.errstate(over="ignore"):
        nearest = np.float32(threshold)
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf)))


def onnx_graph(detector: Detector, threshold: float) -> "ModelProto":
    """Return the ONNX graph of a fitted detector on the CPU, with a free batch size and weights in fp32.

    Input `pixels`: uint8 [batch, height, width, 3], RGB, of the detector's `image_size`. Outputs: `score` [batch],
    `anomaly_map` [batch, height, width], `anomalous` [batch], whether the score is above the threshold.

    Raises:
        ConfigError: the method cannot be exported (`Detector.not_exportable`, or torch's tracer refuses it), a package
            is not installed or broken, or the graph is larger than an ONNX file can be.
        RuntimeError: the detector is not fitted.
    """
    require_packages("`metalad export`", PACKAGES, "install metalad[export]")
    if detector.not_exportable:
        raise ConfigError(f"{detector.name} cannot be exported: {detector.not_exportable}")
    graph = DetectorGraph(detector.eval(), threshold).eval()
    example = torch.zeros(EXAMPLES, *detector.config.image_size, 3, dtype=torch.uint8)
    with torch.no_grad(), _quiet():
        graph(example)  # caches of constants must hold real tensors, not those of the tracer
        try:
            program = _traced(graph, example)
        except Exception as error:  # the tracer has many classes of errors
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"{detector.name} cannot be exported: the tracer of torch refuses it ({reason})"
            ) from error
        constants = [each.const_value for each in program.model.graph.initializers.values()]
        size = sum(value.nbytes for value in constants if value is not None)
        if size > MAX_BYTES:
            raise ConfigError(
                f"the graph of {detector.name} has {size / 2**30:.1f} GiB of constants, and an ONNX file at most 2; "
                "train with a smaller image_size or with fewer features"
            )
        return _without_traces(program.model_proto)


def _traced(graph: DetectorGraph, example: Tensor) -> "ONNXProgram":
    traced = torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    program = torch.onnx.export(
        traced,
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    assert program is not None
    return program


def _without_traces(model: "ModelProto") -> "ModelProto":
    """Remove what the exporter notes of the source code: it is longer than the graph, and names local paths."""
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.producer_name = "metalad"
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter warns of, which does not concern the user: a failed export raises."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
