"""Graphs with weights of 16 bits and convolutions in 8 bits, on a graph of one convolution and one matrix product."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from metalad.exporting.files import write_graph
from metalad.exporting.graph import INPUT
from metalad.exporting.precision import half_weights, quantized
from metalad.inference.onnx_engine import OnnxEngine
from metalad.inference.openvino_engine import OpenvinoEngine
from metalad.runtime.errors import ConfigError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)


def graph(*, matrix: float = 1.0, groups: int = 1) -> onnx.ModelProto:
    """Return pixels → convolution `weight` → product with the constant `matrix`."""
    weight = RNG.normal(0, 0.01, (48, 3 // groups, 5, 5)).astype(np.float32)
    constants = {"weight": weight, "matrix": (matrix * RNG.normal(size=(32, 64))).astype(np.float32)}
    nodes = [
        helper.make_node("Transpose", [INPUT], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["images"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["images", "weight"], ["maps"], name="conv", group=groups, pads=[2, 2, 2, 2]),
        helper.make_node("Reshape", ["maps", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["score"], name="product"),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([-1, 32]), "shape"))
    pixels = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", 16, 16, 3])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", 64])
    made = helper.make_graph(nodes, "test", [pixels], [score], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {INPUT: PIXELS})[0])


def test_half_weights_halve_the_file_and_round_by_a_two_thousandth() -> None:
    full = graph()
    half = half_weights(full)
    assert half.ByteSize() < 0.55 * full.ByteSize()
    expected = run(full)
    difference = np.abs(run(half) - expected).max() / np.abs(expected).max()
    assert 0 < difference < 2**-10


def test_constants_that_float16_cannot_hold_stay_in_fp32() -> None:
    for factor in (1e6, 1e-7):
        half = half_weights(graph(matrix=factor))
        kinds = {each.name: each.data_type for each in half.graph.initializer}
        assert kinds["matrix"] == TensorProto.FLOAT
        assert kinds["weight.half"] == TensorProto.FLOAT16


def test_only_convolutions_with_named_weights_are_quantized() -> None:
    full = graph()
    before, handlers = full.SerializeToString(), list(logging.getLogger().handlers)
    small = quantized(full, {"weight"}, PIXELS)
    assert full.SerializeToString() == before
    assert logging.getLogger().handlers == handlers
    kinds = {each.name: each.data_type for each in small.graph.initializer}
    assert kinds["weight_quantized"] == TensorProto.INT8
    assert kinds["matrix"] == TensorProto.FLOAT
    expected = run(full)
    assert np.abs(run(small) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("groups", [1, 3])
def test_a_graph_without_a_convolution_to_quantize_is_refused(groups: int) -> None:
    weights = {"weight"} if groups > 1 else {"another"}
    with pytest.raises(ConfigError, match="no convolution"):
        quantized(graph(groups=groups), weights, PIXELS)


@pytest.mark.parametrize("signed", [True, False])
def test_openvino_has_the_scores_of_onnxruntime_in_int8(tmp_path: Path, signed: bool) -> None:
    """OpenVINO's own convolutions in integers are wrong on some processors."""
    model = quantized(network(), {"first", "second", "third"}, PIXELS, 0.0, signed=signed)
    write_graph(model, tmp_path / "model.xml")
    expected = OnnxEngine(model.SerializeToString(), "raw", "model").infer(PIXELS, ("raw",))
    found = OpenvinoEngine(tmp_path / "model.xml", "raw").infer(PIXELS, ("raw",))
    np.testing.assert_allclose(found.scores["raw"], expected.scores["raw"], rtol=0.01)
    np.testing.assert_allclose(found.maps["raw"], expected.maps["raw"], atol=0.02 * float(expected.maps["raw"].max()))


def network() -> onnx.ModelProto:
    """Return pixels → three convolutions with ReLU → map and its mean, as exported methods have them."""
    shapes = {"first": (32, 3, 3, 3), "second": (32, 32, 1, 1), "third": (1, 32, 3, 3)}
    nodes = [
        helper.make_node("Transpose", [INPUT], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["maps0"], to=TensorProto.FLOAT),
    ]
    for index, (name, shape) in enumerate(shapes.items()):
        pads = [shape[-1] // 2] * 4
        nodes.append(helper.make_node("Conv", [f"maps{index}", name], [f"sum{index}"], name=f"conv_{name}", pads=pads))
        nodes.append(helper.make_node("Relu", [f"sum{index}"], [f"maps{index + 1}"]))
    nodes.append(helper.make_node("Squeeze", ["maps3", "axis"], ["anomaly_map"]))
    nodes.append(helper.make_node("ReduceMean", ["anomaly_map", "sides"], ["score"], keepdims=0))
    initializers = [
        numpy_helper.from_array(RNG.normal(0.02, 0.1, shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    initializers += [
        numpy_helper.from_array(np.array(value), name) for name, value in (("axis", [1]), ("sides", [1, 2]))
    ]
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", 16, 16, 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["batch", 16, 16]),
        ],
        initializers,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
