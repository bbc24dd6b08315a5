"""Score any number of image files, and write their anomaly maps, overlays and results."""

from metalad.pipelines.predict.run import predict

__all__ = ["predict"]
