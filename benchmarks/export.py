"""Compare exported files with the trained models that they were made from.

python -m benchmarks.export methods WORK --data CATEGORY ... [--only METHOD ...]    all methods, each trained briefly
python -m benchmarks.export runs RUN --data CATEGORY ...    a trained model on all test images of categories
python -m benchmarks.export --tables                        write the tables of docs/export.md

`methods` trains each method with its default settings for two epochs on 32 good images of each category, in WORK, and
compares both formats on all test images of that category; it takes about an hour on two cores.
`runs` compares all formats and precisions on the first category, whose good images int8 is calibrated on, and fp32 on
the others; image by image in turn, so that the ratios of the times are fair. It takes about a second for each image.
Rows are appended to `benchmarks/results/exports/export.jsonl`; of equal rows the last one counts.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metalad
from benchmarks.harness.suite_run import RESULTS
from metalad.data import read_category
from metalad.data.loading import load_images
from metalad.detectors.inference import DetectorEngine
from metalad.exporting.files import write_graph
from metalad.exporting.graph import onnx_graph
from metalad.exporting.precision import half_weights, quantized
from metalad.inference.engine import Engine
from metalad.inference.onnx_engine import OnnxEngine
from metalad.inference.openvino_engine import OpenvinoEngine
from metalad.methods import OWN
from metalad.nn.pixels import subsampled
from metalad.results.metrics.exact import auroc
from metalad.runtime.errors import ConfigError, MetaladError
from metalad.storage.model_file import StoredModel, read_model

ROWS = RESULTS / "exports" / "export.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "export.md"
END = "<!-- end export table -->"
EPOCHS = 2
TRAINING_IMAGES = 32
"""Of each category in `methods`."""
CALIBRATION_IMAGES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true")
    commands = parser.add_subparsers(dest="command")
    each = commands.add_parser("methods")
    each.add_argument("work", type=Path)
    each.add_argument("--data", type=Path, nargs="+", required=True)
    each.add_argument("--every", type=int, default=1, help="compare on every k-th test image, for slow methods")
    each.add_argument("--epochs", type=int, default=EPOCHS)
    each.add_argument("--only", nargs="+", default=[method.name for method in OWN])
    trained = commands.add_parser("runs")
    trained.add_argument("run", type=Path)
    trained.add_argument("--data", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    if arguments.command == "methods":
        torch.set_num_threads(1)
        for name in arguments.only:
            append(row_of(name, arguments))
    elif arguments.command == "runs":
        for row in rows_of(arguments.run, arguments.data):
            append(row)
    write_tables()


def append(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)
    with ROWS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


# All methods


def row_of(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a method briefly unless that was done before, export it in both formats, and return what became of it."""
    (method,) = metalad.list_methods(name)
    row: dict[str, Any] = {"kind": "method", "method": name, "reason": method.not_exportable}
    if method.not_exportable:
        return row
    work, every = arguments.work, arguments.every
    row |= {"epochs": arguments.epochs, "onnx": [], "openvino": []}
    for category in arguments.data:
        run = work / category.name / name
        if not (run / "model.safetensors").exists():
            metalad.train(few_good_images(category, work), run, method=name, epochs=arguments.epochs, device="cpu")
        stored = read_model(run)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                engines = fp32_engines(stored, Path(scratch))
            except MetaladError as error:
                return row | {"reason": str(error)}
            for compared_row in compared(stored, run, engines, category, every):
                if compared_row["format"] != "torch":
                    fields = ("category", "images", "every", "difference", "map_difference", "changed")
                    row[compared_row["format"]].append({field: compared_row[field] for field in fields})
    return row


def few_good_images(category: Path, work: Path) -> Path:
    """Return a folder with copies of the first good images of a category."""
    folder = work / category.name / "good"
    folder.mkdir(parents=True, exist_ok=True)
    for sample in read_category(category).train[:TRAINING_IMAGES]:
        shutil.copy(sample.path, folder)
    return folder


def fp32_engines(stored: StoredModel, scratch: Path) -> "list[Measured]":
    graph, scoring = onnx_graph(stored.detector, stored.threshold()), stored.scoring(None)
    onnx, openvino = scratch / "model.onnx", scratch / "model.xml"
    write_graph(graph, onnx)
    write_graph(graph, openvino)
    return [
        Measured(("onnx", "fp32"), OnnxEngine(onnx.read_bytes(), scoring, onnx.name), onnx.stat().st_size),
        Measured(("openvino", "fp32"), OpenvinoEngine(openvino, scoring), openvino.with_suffix(".bin").stat().st_size),
    ]


# Trained models


@dataclass
class Measured:
    """An engine, what it computed, and the seconds that it took."""

    label: tuple[str, str]
    engine: Engine
    size: int
    scores: list[float] = field(default_factory=list)
    map_difference: float = 0.0
    seconds: float = 0.0


def rows_of(run: Path, categories: list[Path]) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    stored = read_model(run)
    with tempfile.TemporaryDirectory() as scratch:
        engines = [*exported(stored, categories[0], Path(scratch))]
        yield from compared(stored, run, engines, categories[0])
        for category in categories[1:]:
            yield from compared(stored, run, [each for each in engines if each.label[1] == "fp32"], category)


def exported(stored: StoredModel, category: Path, scratch: Path) -> Iterator[Measured]:
    scoring = stored.scoring(None)
    graph = onnx_graph(stored.detector, stored.threshold())
    good = load_images(read_category(category).train, stored.detector.config.framing).pixels
    half = half_weights(graph)
    graphs = {name: {"fp32": graph, "fp16": half} for name in ("onnx", "openvino")}
    weights = {f"detector.{name}" for name, _ in stored.detector.named_parameters()}
    try:
        for name, precisions in graphs.items():
            precisions["int8"] = quantized(
                graph, weights, subsampled(good, CALIBRATION_IMAGES), signed=name == "openvino"
            )
    except ConfigError as error:
        print(f"int8: {error}")
    for precision, variant in graphs["onnx"].items():
        file = scratch / f"{precision}.onnx"
        write_graph(variant, file)
        yield Measured(("onnx", precision), OnnxEngine(file.read_bytes(), scoring, file.name), file.stat().st_size)
    for precision, variant in graphs["openvino"].items():
        file = scratch / f"{precision}.xml"
        write_graph(variant, file)
        size = file.stat().st_size + file.with_suffix(".bin").stat().st_size
        yield Measured(("openvino", precision), OpenvinoEngine(file, scoring), size)


def compared(
    stored: StoredModel, run: Path, engines: list[Measured], category: Path, every: int = 1
) -> Iterator[dict[str, Any]]:
    scoring, threshold = stored.scoring(None), stored.threshold()
    images = load_images(read_category(category).test[::every], stored.detector.config.framing)
    labels = np.array([sample.abnormal for sample in images.samples])
    reference = Measured(("torch", "fp32"), DetectorEngine(stored.detector), 0)
    fresh = [reference, *(Measured(each.label, each.engine, each.size) for each in engines)]
    for pixels in images.pixels:
        expected = None
        for each in fresh:
            begun = time.perf_counter()
            found = each.engine.infer(pixels[None], (scoring,))
            each.seconds += time.perf_counter() - begun
            each.scores.append(float(found.scores[scoring][0]))
            anomaly_map = found.maps[scoring][0]
            if expected is None:
                expected = anomaly_map
            difference = float(np.abs(anomaly_map - expected).max()) / max(threshold, float(expected.max()))
            each.map_difference = max(each.map_difference, difference)
    trained = np.array(reference.scores)
    for each in fresh:
        scores = np.array(each.scores)
        yield {
            "kind": "run",
            "method": stored.header.method,
            "trained_on": stored.header.category,
            "category": category.name,
            "images": len(scores),
            "every": every,
            "format": each.label[0],
            "precision": each.label[1],
            "megabytes": round(each.size / 1e6, 1),
            "difference": float((np.abs(scores - trained) / trained).max()),
            "map_difference": each.map_difference,
            "changed": int(((scores > threshold) != (trained > threshold)).sum()),
            "auroc": auroc(scores, labels),
            "milliseconds": round(1000 * each.seconds / len(scores), 1),
            "run": run.name,
        }


# Tables


def write_tables() -> None:
    """Replace the tables in the page by those of the rows."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()] if ROWS.exists() else []
    page = PAGE.read_text(encoding="utf-8")
    for name, lines in (("methods", methods_table(rows)), ("runs", runs_table(rows))):
        before, _, rest = page.partition(f"<!-- export table: {name} -->")
        page = "\n".join([f"{before}<!-- export table: {name} -->", *lines, END]) + rest.partition(END)[2]
    PAGE.write_text(page, encoding="utf-8")


def methods_table(rows: list[dict[str, Any]]) -> list[str]:
    found = {row["method"]: row for row in rows if row["kind"] == "method"}
    exported = [row for row in found.values() if not row["reason"]]
    names = list(dict.fromkeys(each["category"] for row in exported for each in row["onnx"]))
    columns = [(format, name) for format in ("onnx", "openvino") for name in names]
    titles = [f"{'ONNX' if format == 'onnx' else 'OpenVINO'}, {name}" for format, name in columns]
    lines = [f"| method | {' | '.join(titles)} |", f"| --- |{' --- |' * len(titles)}"]
    for name in (method.name for method in OWN if method.name in found):
        row = found[name]
        cells = [f"no: {row['reason']}", *("no" for _ in columns[1:])] if row["reason"] else cells_of(row, columns)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def cells_of(row: dict[str, Any], columns: list[tuple[str, str]]) -> list[str]:
    measured = {(format, each["category"]): each for format in ("onnx", "openvino") for each in row[format]}
    return [cell(measured[column]) if column in measured else "" for column in columns]


def runs_table(rows: list[dict[str, Any]]) -> list[str]:
    keys = ("method", "trained_on", "category", "format", "precision")
    found = {tuple(row[key] for key in keys): row for row in rows if row["kind"] == "run"}
    lines = [
        "| method, trained on | test images | file | MB | difference | changed verdicts | AUROC | ms an image |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found.values():
        file = "trained model" if row["format"] == "torch" else f"{row['format']}, {row['precision']}"
        size = row["megabytes"] or ""
        lines.append(
            f"| `{row['method']}`, {row['trained_on']} | {row['images']} of {row['category']} | {file} | {size} "
            f"| {row['difference']:.1e} | {row['changed']} | {row['auroc']:.4f} | {row['milliseconds']:.0f} |"
        )
    return lines


def cell(result: dict[str, Any]) -> str:
    changed = f"; {result['changed']} verdicts change" if result["changed"] else ""
    some = f" ({result['images']} images)" if result.get("every", 1) > 1 else ""
    return f"{result['difference']:.0e}{changed}{some}"


if __name__ == "__main__":
    main()
