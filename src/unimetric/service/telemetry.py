"""What the service counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Telemetry:
    """The numbers of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        shared: dict[str, Any] = {"registry": self.registry}
        timed: dict[str, Any] = {"registry": self.registry, "buckets": _SECONDS}
        self.requests = Counter("unimetric_requests", "Requests answered.", ("route", "method", "status"), **shared)
        self.seconds = Histogram("unimetric_request_seconds", "From a request to its answer.", ("route",), **timed)
        self.stage = Histogram(
            "unimetric_stage_seconds", "Of a request: decode, model (with waiting for it), store.", ("stage",), **timed
        )
        self.batch_images = Histogram(
            "unimetric_batch_images", "Images per forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64), **shared
        )
        self.batch_seconds = Histogram("unimetric_batch_seconds", "A forward pass.", **timed)
        self.under_way = Gauge("unimetric_requests_under_way", "Requests that hold a place.", **shared)
        self.refused = Counter(
            "unimetric_requests_refused", "Requests that found no place or no patience.", ("reason",), **shared
        )
        self.ready = Gauge("unimetric_ready", "Whether the model is loaded.", **shared)

    def on_batch(self, images: int, seconds: float) -> None:
        """A forward pass is done."""
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)
