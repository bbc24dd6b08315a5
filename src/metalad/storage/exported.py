"""Read an exported model: an ONNX file, or an OpenVINO pair; without torch."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from metalad.inference.engine import Engine
from metalad.inference.model import ScoringModel
from metalad.runtime.choices import Scoring
from metalad.runtime.errors import ConfigError, ModelFileError
from metalad.storage.exported_metadata import ExportedMetadata, onnx_metadata, openvino_metadata


class ExportedModel(ScoringModel):
    """A model whose scores another runtime computes; it has the scoring that it was exported with."""

    def __init__(self, engine: Engine, metadata: ExportedMetadata, path: Path) -> None:
        self._engine, self.metadata = engine, metadata
        self.header, self.path = metadata.header, path

    @property
    def engine(self) -> Engine:
        """What computes scores and maps."""
        return self._engine

    def normal_scores(self, scoring: Scoring) -> Float[np.ndarray, " images"]:
        """Return image scores of good images that took no part in what they are scored by."""
        self.scoring(scoring)
        return np.array(self.metadata.normal_scores, np.float32)

    def scoring(self, wanted: Scoring | None) -> Scoring:
        """Return the scoring that the file computes.

        Raises:
            ConfigError: another one is wanted.
        """
        own = super().scoring(None)
        if wanted is not None and super().scoring(wanted) != own:
            raise ConfigError(f"{self.path} was exported with the scoring {own}; use that, or the trained model")
        return own

    def computed_threshold(self, false_alarms: float, scoring: Scoring) -> float:
        """Return the stored threshold for a rate, or compute it.

        Raises:
            ConfigError: the rate is not among the stored ones, and scipy is not installed.
        """
        stored = {float(rate): value for rate, value in self.metadata.thresholds.items()}
        if false_alarms in stored:
            return stored[false_alarms]
        try:
            return super().computed_threshold(false_alarms, scoring)
        except ModuleNotFoundError:
            raise ConfigError(
                f"the threshold for {false_alarms:g} needs scipy, which is not installed here; use one of the stored "
                f"rates ({', '.join(f'{rate:g}' for rate in sorted(stored))}), or give a threshold"
            ) from None


def read_exported(path: Path) -> ExportedModel:
    """Read an exported file.

    Raises:
        ModelFileError: the file is missing, truncated, altered, or not metalad's.
        ConfigError: the package that runs it is not installed.
    """
    try:
        if path.suffix.lower() == ".xml":
            from metalad.inference.openvino_engine import OpenvinoEngine

            metadata = openvino_metadata(path)
            return ExportedModel(OpenvinoEngine(path, metadata.scoring, metadata.image_scale), metadata, path)
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    from metalad.inference.onnx_engine import OnnxEngine

    metadata = onnx_metadata(content, path)
    return ExportedModel(OnnxEngine(content, metadata.scoring, str(path), metadata.image_scale), metadata, path)
