"""Benchmarks: train and evaluate methods on categories with several seeds, one result row per run, and a table.

It may import `metalad.pipelines` and what stands below.
"""

from metalad.pipelines.benchmark.pipeline import benchmark
from metalad.pipelines.benchmark.report import BenchmarkReport, CellFailure
from metalad.pipelines.benchmark.rows import ResultRow

__all__ = ["BenchmarkReport", "CellFailure", "ResultRow", "benchmark"]
