"""Judge any number of images and write their anomaly maps."""

from metalad.predict.pipeline import PredictedImage
from metalad.predict.run import predict

__all__ = ["PredictedImage", "predict"]
