"""metalad: image anomaly localization that trains on defect-free images only.

The names in `__all__` are the public API, documented in docs/api.md; everything else is internal and may change without
notice. A name is imported when it is first used, so that `import metalad` is fast and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metalad.detectors.base import DetectorConfig
    from metalad.pipelines.benchmark import BenchmarkReport, benchmark
    from metalad.pipelines.compare import compare
    from metalad.pipelines.datasets import datasets
    from metalad.pipelines.demo import demo
    from metalad.pipelines.demo_images import demo_images
    from metalad.pipelines.evaluate import evaluate
    from metalad.pipelines.export import ExportReport, export
    from metalad.pipelines.fit import fit
    from metalad.pipelines.list_methods import MethodInfo, SettingInfo, list_methods
    from metalad.pipelines.load import load
    from metalad.pipelines.model import Model
    from metalad.pipelines.predict import predict
    from metalad.pipelines.serve import serve
    from metalad.pipelines.train import train
    from metalad.pipelines.watch import watch
    from metalad.results.comparison import Comparison
    from metalad.results.logged import LoggedPrediction
    from metalad.results.prediction import Result, SavedPrediction
    from metalad.results.regions import Region
    from metalad.results.report import Report
    from metalad.runtime.errors import ConfigError, DataError, ImageError, MetaladError, ModelFileError, RunError
    from metalad.training.loop import TrainingStep

    __version__: str

_MODULES = {
    "BenchmarkReport": "pipelines.benchmark",
    "Comparison": "results.comparison",
    "ConfigError": "runtime.errors",
    "DataError": "runtime.errors",
    "DetectorConfig": "detectors.base",
    "ExportReport": "pipelines.export",
    "ImageError": "runtime.errors",
    "LoggedPrediction": "results.logged",
    "MetaladError": "runtime.errors",
    "MethodInfo": "pipelines.list_methods",
    "Model": "pipelines.model",
    "ModelFileError": "runtime.errors",
    "Region": "results.regions",
    "Report": "results.report",
    "Result": "results.prediction",
    "RunError": "runtime.errors",
    "SavedPrediction": "results.prediction",
    "SettingInfo": "pipelines.list_methods",
    "TrainingStep": "training.loop",
    "benchmark": "pipelines.benchmark",
    "compare": "pipelines.compare",
    "datasets": "pipelines.datasets",
    "demo": "pipelines.demo",
    "demo_images": "pipelines.demo_images",
    "evaluate": "pipelines.evaluate",
    "export": "pipelines.export",
    "fit": "pipelines.fit",
    "list_methods": "pipelines.list_methods",
    "load": "pipelines.load",
    "predict": "pipelines.predict",
    "serve": "pipelines.serve",
    "train": "pipelines.train",
    "watch": "pipelines.watch",
}

__all__ = [
    "BenchmarkReport",
    "Comparison",
    "ConfigError",
    "DataError",
    "DetectorConfig",
    "ExportReport",
    "ImageError",
    "LoggedPrediction",
    "MetaladError",
    "MethodInfo",
    "Model",
    "ModelFileError",
    "Region",
    "Report",
    "Result",
    "RunError",
    "SavedPrediction",
    "SettingInfo",
    "TrainingStep",
    "__version__",
    "benchmark",
    "compare",
    "datasets",
    "demo",
    "demo_images",
    "evaluate",
    "export",
    "fit",
    "list_methods",
    "load",
    "predict",
    "serve",
    "train",
    "watch",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        from metalad.runtime.versions import own_version

        value: Any = own_version()
    elif name in _MODULES:
        try:
            value = getattr(import_module(f"metalad.{_MODULES[name]}"), name)
        except ImportError as error:
            from metalad.runtime.errors import ConfigError
            from metalad.runtime.packages import not_in_runtime

            if line := not_in_runtime(f"metalad.{name}", error):
                raise ConfigError(line) from error
            raise
    else:
        raise AttributeError(f"module 'metalad' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
