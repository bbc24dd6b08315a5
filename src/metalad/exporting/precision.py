"""Smaller numbers in an ONNX graph: weights of 16 bits, or convolutions in integers of 8 bits."""

import contextlib
import logging
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from metalad.exporting.graph import INPUT, PACKAGES
from metalad.runtime.errors import ConfigError
from metalad.runtime.packages import require_packages

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

SKIPPED = (0.125, 0.25, 0.5)
"""Fractions of the convolutions, from the input on, that stay in fp32 with int8: the first lose the most digits. The
next fraction is used where the scores differ too much with the one before."""
SMALLEST = 1024
"""Constants of fewer values stay in 32 bits: they save nothing."""
HALF_PRECISION = 2.0**-11
"""Relative rounding error of a normal float16 number."""


def half_weights(model: "ModelProto") -> "ModelProto":
    """Return the graph with its large constants in float16, each converted to float32 before it is used.

    All computations stay in float32. A constant stays in float32 if its largest value does not fit into float16, or if
    all of its values are so small that float16 has fewer digits there.
    """
    from onnx import TensorProto, helper, numpy_helper

    halved = type(model)()
    halved.CopyFrom(model)
    casts: list[NodeProto] = []
    for constant in halved.graph.initializer:
        if constant.data_type != TensorProto.FLOAT or np.prod(constant.dims) < SMALLEST:
            continue
        values = numpy_helper.to_array(constant)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.abs(half.astype(np.float32) - values).max() <= HALF_PRECISION * np.abs(values).max():
            continue
        name, stored = constant.name, f"{constant.name}.half"
        constant.CopyFrom(numpy_helper.from_array(half, stored))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"cast_{name}", to=TensorProto.FLOAT))
    nodes = [*casts, *halved.graph.node]
    del halved.graph.node[:]
    halved.graph.node.extend(nodes)
    return halved


def quantized(
    model: "ModelProto",
    weights: Collection[str],
    pixels: UInt8[np.ndarray, "images height width 3"],
    skipped: float = SKIPPED[0],
    *,
    signed: bool = False,
) -> "ModelProto":
    """Return the graph with convolutions of its networks in integers of 8 bits (QDQ format).

    Weights have a scale for each output channel, activations one for each tensor, from the lowest to the highest value
    on the given images. Depthwise convolutions stay in fp32: they gain no speed, and lose the most digits. So does
    everything else, such as distances from nearest neighbors.

    Args:
        model: the graph in fp32.
        weights: names of trained or pretrained weights; convolutions with other constants stay in fp32.
        pixels: good images of the model's size.
        skipped: fraction of the convolutions, from the input on, that stay in fp32.
        signed: activations are signed, which OpenVINO 2026.4 needs: it computes unsigned ones wrongly; onnxruntime
            computes unsigned ones faster.

    Raises:
        ConfigError: there is no convolution to convert, or onnxruntime is not installed.
    """
    require_packages("`metalad export`", PACKAGES, "install metalad[export]")
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.remaining = iter(pixels)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.remaining, None)
            return None if image is None else {INPUT: image[None]}

    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in weights]
    chosen = [node.name for node in convolutions[round(skipped * len(convolutions)) :] if _groups(node) == 1]
    if not chosen:
        raise ConfigError("the graph has no convolution of a network that int8 can speed up; use fp32 or fp16")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "model.onnx", Path(folder) / "quantized.onnx"
        source.write_bytes(model.SerializeToString())  # given the graph itself, onnxruntime would change it
        quantize_static(
            source,
            target,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=chosen,
            per_channel=True,
            # 7 bits: the sum of two products of 8 bits overflows on processors without VNNI.
            reduce_range=True,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


def _groups(node: "NodeProto") -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the root logger's advice to preprocess the graph, which has been optimized already."""
    logger, handler = logging.getLogger(), logging.NullHandler()
    level = logger.level
    logger.setLevel(logging.ERROR)
    logger.addHandler(handler)  # without any, `logging.warning` would add one that prints all later messages
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
