"""Benchmarks: declared suites of cells, run once each and kept as rows, from which the tables are made."""

from metalad.pipelines.benchmark.declaration import Cell, Configuration, Grid, Suite
from metalad.pipelines.benchmark.run import Outcome, benchmark
from metalad.pipelines.benchmark.suites import suites

__all__ = ["Cell", "Configuration", "Grid", "Outcome", "Suite", "benchmark", "suites"]
