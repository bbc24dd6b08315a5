"""Score any number of image files, and write their anomaly maps, overlays and results.

It may import `metalad.pipelines` and what stands below.
"""

from metalad.pipelines.predict.run import predict

__all__ = ["predict"]
