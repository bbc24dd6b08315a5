"""An exported OpenVINO model as an engine."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from metalad.inference.engine import Inference
from metalad.inference.exported_engine import ExportedEngine
from metalad.inference.stream import Threads
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import ModelFileError
from metalad.runtime.packages import require_packages


class OpenvinoEngine(ExportedEngine):
    """Runs a model that computes scores and maps by one scoring, with one inference request for each thread."""

    def __init__(self, xml: Path, scoring: Scoring, image_scale: float = 0.0) -> None:
        """Load a model from its .xml and the .bin beside it; `image_scale` is that of its settings.

        Raises:
            ConfigError: OpenVINO is not installed, or broken. ModelFileError: it cannot run the model.
        """
        require_packages(str(xml), {"openvino": "openvino"}, "install metalad-runtime[openvino] or metalad[openvino]")
        import openvino

        super().__init__(scoring, image_scale)
        threads = Threads.of(self)
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",  # by default, processors with AMX compute in bfloat16
            # Without VNNI, OpenVINO 2026.4 computes convolutions in integers wrongly; in fp32, int8 files score right.
            "LP_TRANSFORMS_MODE": "NO",
            "NUM_STREAMS": str(threads.workers),
            "INFERENCE_NUM_THREADS": str(threads.workers * threads.engine_threads),
        }
        try:
            self._model = openvino.Core().compile_model(xml, "CPU", settings)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ModelFileError(f"{xml}: OpenVINO {openvino.__version__} cannot run it ({reason})") from error
        # Two threads that use this property for the first time at once wait for each other forever (OpenVINO 2026.4).
        _ = openvino.Tensor(np.zeros(1, np.uint8)).data
        shape = self._model.input(0).get_partial_shape()
        self._size = (shape[1].get_length(), shape[2].get_length())
        self._local = threading.local()

    def infer(self, pixels: UInt8[np.ndarray, "batch height width 3"], scorings: Sequence[Scoring]) -> Inference:
        """Return scores and maps of images of `image_size`, by the model's scoring."""
        self._require(scorings)
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        found = self._local.request.infer({0: pixels})
        # Copied: the request writes the next results into the same memory.
        return Inference({self._scoring: np.array(found["score"])}, {self._scoring: np.array(found["anomaly_map"])})
