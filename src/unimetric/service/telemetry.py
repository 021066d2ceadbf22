"""Metrics of the service, for Prometheus."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Telemetry:
    """Metrics of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        shared: dict[str, Any] = {"registry": self.registry}
        timed: dict[str, Any] = {"registry": self.registry, "buckets": _SECONDS}
        self.requests = Counter("unimetric_requests", "Requests answered.", ("route", "method", "status"), **shared)
        self.seconds = Histogram("unimetric_request_seconds", "From a request to its answer.", ("route",), **timed)
        self.stage = Histogram(
            "unimetric_stage_seconds",
            "Decoding, model (waiting included), search, reading, writing, opening of originals.",
            ("stage",),
            **timed,
        )
        self.batch_images = Histogram(
            "unimetric_batch_images", "Images per forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64), **shared
        )
        self.batch_seconds = Histogram("unimetric_batch_seconds", "A forward pass.", **timed)
        self.under_way = Gauge("unimetric_requests_under_way", "Requests that hold a place.", **shared)
        self.refused = Counter(
            "unimetric_requests_refused", "Requests refused or given up, by reason.", ("reason",), **shared
        )
        self.ready = Gauge("unimetric_ready", "1 while searches are answered.", **shared)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record the seconds of one stage of a request."""
        started = time.perf_counter()
        yield
        self.stage.labels(stage).observe(time.perf_counter() - started)

    def on_batch(self, images: int, seconds: float) -> None:
        """Record a forward pass."""
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)
