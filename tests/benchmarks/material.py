"""A suite of four cells that run in a fraction of a second."""

from benchmarks.harness.declaration import Grid, Suite
from tests.pipelines.benchmark.material import ONE, TWO

SUITE = Suite(
    "trial",
    "two configurations on one category with two seeds",
    (Grid((ONE, TWO), ("cookie",), (0, 1), epochs=1),),
)
