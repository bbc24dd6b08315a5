"""The exported graph of a method has the scores and verdicts of its detector, for any batch size.

All methods take minutes: METALAD_ALL_EXPORTS=1 in the environment tests them all, otherwise one of each kind is tested.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import metalad
from metalad.detectors.base import FittedDetector
from metalad.detectors.inference import DetectorEngine
from metalad.exporting.graph import INPUT, OPSET, OUTPUTS, largest_float32, onnx_graph
from metalad.methods import OWN, method_named
from metalad.methods.patchcore import PatchCoreConfig
from metalad.runtime.errors import ConfigError
from tests.cookies import cookies
from tests.methods.test_contract import SMALL

EXPORTABLE = [method.name for method in OWN if not method.load().not_exportable]
ALL = bool(os.environ.get("METALAD_ALL_EXPORTS"))
TESTED = EXPORTABLE if ALL else ["variation_model", "ocgan", "patchcore", "metal"]
SHALLOW = PatchCoreConfig(image_size=(48, 64), smoothing_sigma=2.0, taps=("s4",), grid="s4")
"""Tracing the first quarter of the backbone takes a quarter of the time."""
TOLERANCE = 1e-4
PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.mark.parametrize("name", TESTED)
def test_scores_and_verdicts_are_those_of_the_detector_for_any_batch_size(name: str) -> None:
    config = SMALL[name] if ALL or name != "patchcore" else SHALLOW
    pixels = cookies(13, config.image_size)
    is_fitted = issubclass(method_named(name).load(), FittedDetector)
    training: dict[str, Any] = {} if is_fitted else {"epochs": 2}
    stored = metalad.fit(list(pixels[:10]), method=config, device="cpu", **training).stored
    scoring = stored.scoring(None)
    # The first two were trained on: distances near 0 must not be those of rounding errors.
    compared = pixels[8:]
    expected = DetectorEngine(stored.detector).infer(compared, (scoring,))
    # Lies between the scores, so that there are verdicts of both kinds.
    threshold = float(np.sort(expected.scores[scoring])[2]) * (1 + 1e-3)

    graph = onnx_graph(stored.detector, threshold)

    assert [entry.version for entry in graph.opset_import] == [OPSET]
    assert b".py" not in graph.SerializeToString()  # no notes of the exporter on the source code
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == (INPUT, "tensor(uint8)", ["batch", *config.image_size, 3])
    for batch in (compared, compared[:1]):
        score, anomaly_map, anomalous = session.run(OUTPUTS, {INPUT: batch})
        np.testing.assert_allclose(score, expected.scores[scoring][: len(batch)], rtol=TOLERANCE)
        largest = float(expected.maps[scoring].max())
        np.testing.assert_allclose(anomaly_map, expected.maps[scoring][: len(batch)], atol=TOLERANCE * largest, rtol=0)
        np.testing.assert_array_equal(anomalous, expected.scores[scoring][: len(batch)] > threshold)
    assert expected.scores[scoring].max() > threshold > expected.scores[scoring].min()


def test_the_documented_table_has_every_method_and_every_reason() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    table = {row[0].strip("| `"): row[1].strip() for row in rows}
    for method in OWN:
        reason = method.load().not_exportable
        assert table[method.name].startswith(f"no: {reason}" if reason else tuple("0123456789")), method.name


def test_a_method_that_cannot_be_exported_gives_the_reason() -> None:
    detector = next(method for method in OWN if method.name == "anogan").load()(SMALL["anogan"])
    with pytest.raises(ConfigError, match="anogan cannot be exported: inference is a search by gradient descent"):
        onnx_graph(detector, 1.0)


def test_a_graph_that_cannot_be_traced_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("batch is constant\nlong explanation")

    stored = metalad.fit(list(cookies(4, (48, 64))), method=SMALL["variation_model"], device="cpu").stored
    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(ConfigError, match=r"variation_model cannot be exported: .* \(batch is constant\)$"):
        onnx_graph(stored.detector, 1.0)


def test_a_float32_score_is_above_the_rounded_threshold_if_and_only_if_it_is_above_the_threshold() -> None:
    rng = np.random.default_rng(0)
    for threshold in (*rng.lognormal(0, 3, 200).tolist(), 1.0, float(np.float32(0.1)), 1e300):
        limit = np.float32(largest_float32(threshold))
        with np.errstate(over="ignore"):
            near = [limit, np.nextafter(limit, np.float32(np.inf)), np.nextafter(limit, np.float32(-np.inf))]
        for score in near:
            assert (torch.tensor(score) > float(limit)).item() == (float(score) > threshold)
