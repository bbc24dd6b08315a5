"""Metrics of image scores and anomaly maps: curves and areas, exact and streaming, in NumPy alone.

It imports no other package of metalad.
"""

from metalad.results.metrics.curves import MAX_FPR, PrCurve, ProCurve, RocCurve, UndefinedMetric
from metalad.results.metrics.exact import (
    aupro,
    auroc,
    auroc_up_to,
    average_precision,
    f1_max,
    pr_curve,
    pro_curve,
    roc_curve,
)
from metalad.results.metrics.streaming import PixelMetrics

__all__ = [
    "MAX_FPR",
    "PixelMetrics",
    "PrCurve",
    "ProCurve",
    "RocCurve",
    "UndefinedMetric",
    "aupro",
    "auroc",
    "auroc_up_to",
    "average_precision",
    "f1_max",
    "pr_curve",
    "pro_curve",
    "roc_curve",
]
