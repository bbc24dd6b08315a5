"""Export a trained model to a file that predicts without torch, and check that file on real images."""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from metalad.data import read_category
from metalad.data.content import file_hash
from metalad.data.loading import Images, load_images
from metalad.data.reading import Reading
from metalad.data.sample import Sample
from metalad.detectors.inference import DetectorEngine
from metalad.exporting.comparison import Agreement, compare_engines
from metalad.exporting.files import add_metadata, require_writer, write_graph
from metalad.exporting.graph import OPSET, onnx_graph
from metalad.exporting.precision import SKIPPED, half_weights, quantized
from metalad.inference.engine import Engine
from metalad.nn.pixels import subsampled_indices
from metalad.pipelines.demo import DATA
from metalad.pipelines.model import Model, stored_model
from metalad.results.metrics.exact import auroc
from metalad.runtime.choices import ExportFormat, ExportPrecision
from metalad.runtime.errors import ConfigError, RunError
from metalad.runtime.files import require_writable, write_bytes
from metalad.runtime.progress import bars, logger
from metalad.runtime.settings import check_choice
from metalad.runtime.versions import versions
from metalad.storage.exported import read_exported
from metalad.storage.exported_metadata import RATES, ExportedMetadata
from metalad.storage.model_file import StoredModel

if TYPE_CHECKING:
    from onnx import ModelProto

SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "openvino": ".xml"}
TOLERANCES: dict[str, float] = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.2}
"""Largest accepted relative difference of a score. fp32: sums in another order. fp16: each weight is rounded by up to
0.05 %. int8: 28 layers are rounded by up to 1 %; a verdict changes only where a score is that near to the threshold."""
MAP_FACTOR = 10
"""Pixels of maps may differ by this many times the tolerance of scores."""
CHECKED_IMAGES = 32
CALIBRATION_IMAGES = 64
"""Good images that the ranges of int8 are taken from; more hardly widen them."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """An exported file, and how its results differ from those of the trained model.

    size: bytes, of both files for OpenVINO. images: number of images that were compared. difference: the largest
    relative difference of a score; `tolerance` was accepted. map_difference: the largest difference of a map's pixel,
    relative to the map's highest value or the highest score. changed_verdicts: number of images that are anomalous by
    one of the two only. auroc, trained_auroc: of the exported and the trained model; None without labelled images.
    """

    path: Path
    method: str
    format: str
    precision: str
    opset: int
    size: int
    images: int
    difference: float
    tolerance: float
    map_difference: float
    changed_verdicts: int
    auroc: float | None
    trained_auroc: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON's own types."""
        return dataclasses.asdict(self) | {"path": str(self.path)}

    def text(self) -> str:
        """Return the report in a few lines."""
        lines = [
            f"{self.path}: {self.method}, {self.precision}, {self.size / 1e6:.1f} MB, opset {self.opset}",
            f"{self.images} images: scores differ by at most {self.difference:.1e} ({self.tolerance:g} is accepted), "
            f"maps by {self.map_difference:.1e}; {self.changed_verdicts} verdicts change",
        ]
        if self.auroc is not None:
            lines.append(f"image AUROC {self.auroc:.4f}, of the trained model {self.trained_auroc:.4f}")
        return "\n".join(lines)


def export(
    model: "str | Path | Model",
    out: str | Path,
    *,
    format: ExportFormat | None = None,
    precision: ExportPrecision = "fp32",
    calibration_data: str | Path | None = None,
    data: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> ExportReport:
    """Write a trained model as a file that predicts without torch; `load` and `predict` take it.

    The file is compared with the trained model on real images: the test images of `data`, or else those of
    `calibration_data`, or else photographs that ship with the package. If a score differs by more than the tolerance of
    the precision, nothing is written.

    Args:
        model: a run folder or a model file; in Python also a model.
        out: the file to write: NAME.onnx, or NAME.xml for OpenVINO, which also gets NAME.bin.
        format: `onnx` or `openvino`; by default the one whose suffix `out` has.
        precision: `fp32`; `fp16`: weights of 16 bits, half the size; `int8`: convolutions in 8 bits.
        calibration_data: good images, such as those of the training; int8 needs them for its ranges.
        data: a category with test images to compare on, as `evaluate` takes it; the report then has the AUROC.
        overwrite: replace an existing file.
        progress: show progress on stderr.

    Raises:
        ConfigError: an impossible option, a method that cannot be exported, or a package that is not installed.
        ModelFileError: no usable trained model.
        DataError: no images.
        RunError: the scores differ too much, or the file exists or cannot be written.
    """
    path = Path(out)
    format = _format_of(path, format)
    _check(path, format, precision, calibration_data, overwrite)
    stored = stored_model(model, "cpu")
    threshold = stored.threshold()
    with bars(shown=progress), tempfile.TemporaryDirectory() as scratch:
        calibration = None if calibration_data is None else _images(stored, calibration_data, CALIBRATION_IMAGES)
        images = _compared_images(stored, calibration, data)
        graph = onnx_graph(stored.detector, threshold)
        file = Path(scratch) / path.name
        agreement = _written(stored, file, _variants(stored, graph, precision, format, calibration), images, precision)
        metadata = _metadata(stored, agreement, precision, format)
        add_metadata(file, metadata)
        read_exported(file)  # what another computer will do: it checks the checksum, and loads the model
        parts = [file] if format == "onnx" else [file.with_suffix(".bin"), file]
        size = sum(part.stat().st_size for part in parts)
        for part in parts:
            write_bytes(path.with_suffix(part.suffix), part.read_bytes())
    labels = np.array([sample.abnormal for sample in images.samples])
    return ExportReport(
        path=path,
        method=stored.header.method,
        format=format,
        precision=precision,
        opset=OPSET,
        size=size,
        images=len(images),
        difference=agreement.difference,
        tolerance=TOLERANCES[precision],
        map_difference=agreement.map_difference,
        changed_verdicts=agreement.changed_verdicts,
        auroc=_auroc(agreement.scores, labels, data),
        trained_auroc=_auroc(agreement.expected, labels, data),
    )


def _format_of(path: Path, wanted: ExportFormat | None) -> ExportFormat:
    if wanted is not None:
        check_choice("format", wanted, ExportFormat)
        if path.suffix != SUFFIXES[wanted]:
            raise ConfigError(f"out is {path}, but files of format {wanted} end with {SUFFIXES[wanted]}; change one")
        return wanted
    for format, suffix in SUFFIXES.items():
        if path.suffix == suffix:
            return format
    raise ConfigError(f"out is {path}; give a name that ends with .onnx, or with .xml for OpenVINO")


def _check(path: Path, format: str, precision: str, calibration_data: str | Path | None, overwrite: bool) -> None:
    check_choice("precision", precision, ExportPrecision)
    if precision == "int8" and calibration_data is None:
        raise ConfigError("int8 needs good images, such as those of the training; give --calibration-data PATH")
    for each in (path, path.with_suffix(".bin")) if format == "openvino" else (path,):
        if each.exists() and not overwrite:
            raise RunError(f"{each} exists; give another name, or --overwrite to replace it")
        require_writable(each)
    require_writer(path.suffix)  # here, because the graph that needs it is ready only after a minute


def _images(stored: StoredModel, folder: str | Path, limit: int) -> Images:
    """Return good images of a folder, evenly spread over all."""
    category = read_category(Path(folder), seed=stored.header.seed)
    return _load(stored, category.train, limit)


def _load(stored: StoredModel, samples: Sequence[Sample], limit: int | None) -> Images:
    chosen = samples if limit is None else [samples[index] for index in subsampled_indices(len(samples), limit)]
    images = load_images(chosen, stored.detector.config.framing, reading=Reading(stored.header.white_level))
    for skipped in images.skipped:
        logger.warning("skipped: %s: %s", skipped.path, skipped.reason)
    return images


def _compared_images(stored: StoredModel, calibration: Images | None, data: str | Path | None) -> Images:
    if data is not None:
        category = read_category(Path(data), seed=stored.header.seed)
        if not category.test:
            raise ConfigError(f"{data}: no test images there; give a folder that `evaluate` takes")
        return _load(stored, category.test, None)
    if calibration is not None:
        chosen = subsampled_indices(len(calibration), CHECKED_IMAGES)
        samples = tuple(calibration.samples[index] for index in chosen)
        return dataclasses.replace(calibration, samples=samples, pixels=calibration.pixels[chosen])
    return _load(stored, read_category(DATA).test, CHECKED_IMAGES)


def _variants(
    stored: StoredModel,
    graph: "ModelProto",
    precision: ExportPrecision,
    format: ExportFormat,
    calibration: Images | None,
) -> Iterator["ModelProto"]:
    """Yield the graph in a precision; for int8, one with ever fewer layers in 8 bits."""
    if precision == "fp32":
        yield graph
    elif precision == "fp16":
        yield half_weights(graph)
    else:
        assert calibration is not None
        weights = {f"detector.{name}" for name, _ in stored.detector.named_parameters()}
        for skipped in SKIPPED:
            yield quantized(graph, weights, calibration.pixels, skipped, signed=format == "openvino")


def _written(
    stored: StoredModel, file: Path, variants: Iterator["ModelProto"], images: Images, precision: ExportPrecision
) -> Agreement:
    """Write the first variant whose scores agree with the detector's.

    Raises:
        RunError: none does.
    """
    scoring, threshold = stored.scoring(None), stored.threshold()
    detector = DetectorEngine(stored.detector)
    best: Agreement | None = None
    for variant in variants:
        write_graph(variant, file)
        agreement = compare_engines(detector, _engine(file, stored), images.pixels, scoring, threshold)
        if _agrees(agreement, TOLERANCES[precision]):
            return agreement
        if best is None or agreement.difference < best.difference:
            best = agreement
    assert best is not None
    remedy = "this is a fault of metalad; please report it" if precision == "fp32" else "use fp32"
    raise RunError(
        f"nothing was written: in {precision}, the score of {images.samples[best.worst].path} differs by "
        f"{100 * best.difference:.2g} % from the trained model's ({100 * TOLERANCES[precision]:g} % is accepted), and "
        f"maps by up to {100 * best.map_difference:.2g} %; {remedy}"
    )


def _engine(file: Path, stored: StoredModel) -> Engine:
    scoring = stored.scoring(None)
    if file.suffix == ".xml":
        from metalad.inference.openvino_engine import OpenvinoEngine

        return OpenvinoEngine(file, scoring)
    from metalad.inference.onnx_engine import OnnxEngine

    return OnnxEngine(file.read_bytes(), scoring, file.name)


def _agrees(agreement: Agreement, tolerance: float) -> bool:
    return agreement.difference <= tolerance and agreement.map_difference <= MAP_FACTOR * tolerance


def _metadata(
    stored: StoredModel, agreement: Agreement, precision: ExportPrecision, format: ExportFormat
) -> ExportedMetadata:
    scoring = stored.scoring(None)
    runtime = ("onnxruntime",) if format == "onnx" else ("openvino",)
    return ExportedMetadata(
        header=stored.header,
        model_sha256="" if stored.path is None else file_hash(stored.path),
        scoring=scoring,
        threshold=stored.threshold(),
        thresholds={str(rate): stored.threshold(rate) for rate in RATES},
        normal_scores=[float(score) for score in stored.normal_scores(scoring)],
        precision=precision,
        opset=OPSET,
        tolerance=TOLERANCES[precision],
        difference=agreement.difference,
        images=len(agreement.scores),
        versions=versions(("metalad", "torch", "onnx", "onnxscript", *runtime)),
    )


def _auroc(scores: np.ndarray, labels: Bool[np.ndarray, " images"], data: str | Path | None) -> float | None:
    if data is None or labels.all() or not labels.any():
        return None
    return auroc(scores, labels)
