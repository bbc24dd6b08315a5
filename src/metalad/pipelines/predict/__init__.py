"""Judge any number of images and write their anomaly maps."""

from metalad.pipelines.predict.pipeline import PredictedImage
from metalad.pipelines.predict.run import predict

__all__ = ["PredictedImage", "predict"]
