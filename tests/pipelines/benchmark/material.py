"""Tiny categories of noise, cells that run in a fraction of a second, and rows with given metrics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metalad.data.images import write_image
from metalad.pipelines.benchmark.cells import Cell, Configuration
from metalad.pipelines.benchmark.rows import ResultRow
from tests.tiny import TINY_SETTINGS

TINY = (*TINY_SETTINGS, "reduction=1")
ONE, TWO = Configuration("one", "metal", TINY), Configuration("two", "metal", (*TINY, "depth=2"))
CELLS = tuple(Cell(configuration, "cookie", seed, epochs=1) for configuration in (ONE, TWO) for seed in (0, 1))


def put_category(root: Path, train: int = 6, good: int = 2, defective: int = 2) -> Path:
    """Write noise images in the MVTec layout, with a bright square as the defect."""
    rng = np.random.default_rng(0)

    def put(folder: str, count: int, *, hole: bool) -> None:
        for index in range(count):
            image = rng.integers(0, 128, (32, 40, 3)).astype(np.uint8)
            if hole:
                image[8:16, 8:16] = 255
                mask = np.zeros((32, 40), np.uint8)
                mask[8:16, 8:16] = 255
                write_image(root / "ground_truth" / "hole" / f"{index:03}_mask.png", mask)
            write_image(root / folder / f"{index:03}.png", image)

    put("train/good", train, hole=False)
    put("test/good", good, hole=False)
    put("test/hole", defective, hole=True)
    return root


def row_of(cell: Cell, value: float = 0.75, **other: Any) -> ResultRow:
    """Return a row in which every metric has the same value."""
    metrics = {name: value for name in ("pixel_auroc_fpr30", "pixel_auroc", "image_auroc")}
    found: Mapping[str, Any] = {
        "suite": "trial",
        "key": cell.key,
        "name": cell.name,
        "method": cell.configuration.method,
        "settings": cell.configuration.settings,
        "config": {"depth": 1, "scoring": "calibrated"},
        "category": cell.category,
        "seed": cell.seed,
        "protocol": cell.protocol,
        "epochs": cell.epochs,
        "data": {"all": "abc"},
        "commit": "0123456789abcdef",
        "machine": {"cpu": "some processor", "cores": 2, "memory_gib": 8.0, "gpu": None},
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "threads": 2,
        "training": {"precision": "fp32"},
        "parameters": 17_860_000,
        "metrics": {scoring: {"model": metrics, "original": metrics} for scoring in ("calibrated", "raw")},
        "cost": {"train_seconds": 10.0, "evaluate_seconds": 2.0, "sessions": 1, "peak_memory": 1},
    }
    return ResultRow(**{**found, **other})
