"""An exported ONNX file as an engine, run by onnxruntime."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from metalad.inference.engine import Inference
from metalad.inference.exported_engine import ExportedEngine
from metalad.inference.stream import Threads
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import ModelFileError
from metalad.runtime.packages import require_packages

OUTPUTS = ("score", "anomaly_map")
ERRORS_ONLY = 3


class OnnxEngine(ExportedEngine):
    """Runs a model that computes scores and maps by one scoring; the number of threads of a call is fixed."""

    def __init__(self, content: bytes, scoring: Scoring, name: str, image_scale: float = 0.0) -> None:
        """Load an encoded model; `name` is its file's, for errors, `image_scale` that of its settings.

        Raises:
            ConfigError: onnxruntime is not installed, or broken. ModelFileError: it cannot run the model.
        """
        require_packages(name, {"onnxruntime": "onnxruntime"}, "install metalad-runtime or metalad[runtime]")
        import onnxruntime

        super().__init__(scoring, image_scale)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = Threads.of(self).engine_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes derive from Exception only
            reason = str(error).splitlines()[0]
            raise ModelFileError(f"{name}: onnxruntime {onnxruntime.__version__} cannot run it ({reason})") from error
        (pixels,) = self._session.get_inputs()
        self._input = pixels.name
        self._size = (int(pixels.shape[1]), int(pixels.shape[2]))

    def infer(self, pixels: UInt8[np.ndarray, "batch height width 3"], scorings: Sequence[Scoring]) -> Inference:
        """Return scores and maps of images of `image_size`, by the model's scoring."""
        self._require(scorings)
        score, anomaly_map = self._session.run(OUTPUTS, {self._input: pixels})
        return Inference({self._scoring: score}, {self._scoring: anomaly_map})
