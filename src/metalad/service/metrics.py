"""Counts and times for Prometheus."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from metalad.service.models import Registry
from metalad.service.scoring import Scored

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "metalad_requests", "Answered requests.", ["method", "path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "metalad_request_seconds",
            "Time from the headers of a request to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.slots = Gauge(
            "metalad_queue_images", "Images in the service: in upload, waiting or computed.", registry=self.registry
        )
        self.limit = Gauge("metalad_queue_limit", "The most images at once in the service.", registry=self.registry)
        self.images = Counter(
            "metalad_images",
            "Images by model and verdict (ok, anomalous, unreadable).",
            ["model", "verdict"],
            registry=self.registry,
        )
        self.inference = Histogram(
            "metalad_image_seconds",
            "Time to decode and score one image, without waiting.",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.ratios = Histogram(
            "metalad_score_to_threshold",
            "Image scores divided by their threshold: above 1 is anomalous.",
            ["model"],
            buckets=RATIOS,
            registry=self.registry,
        )
        self.loaded = Gauge(
            "metalad_model_loaded_timestamp_seconds", "When a model was loaded.", ["model"], registry=self.registry
        )
        self.failed = Gauge(
            "metalad_model_reload_failed",
            "1 if a newer file of a model could not be loaded.",
            ["model"],
            registry=self.registry,
        )

    def watch(self, registry: Registry) -> None:
        """Report when each model was loaded, and whether a newer file of it failed to load."""

        def loaded(name: str) -> float:
            return registry.served[name].loaded.timestamp()

        def failed(name: str) -> float:
            return float(registry.served[name].error is not None)

        for name in registry.served:
            self.loaded.labels(name).set_function(partial(loaded, name))
            self.failed.labels(name).set_function(partial(failed, name))

    def count_image(self, model: str, scored: Scored) -> None:
        """Count the verdict and the score of an image."""
        if scored.score is None:
            self.images.labels(model, "unreadable").inc()
            return
        self.images.labels(model, "anomalous" if scored.is_anomalous else "ok").inc()
        self.ratios.labels(model).observe(scored.score / scored.threshold)

    def text(self) -> tuple[bytes, str]:
        """Return the metrics in the text format of Prometheus, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
