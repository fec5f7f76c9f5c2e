"""What Prometheus sees: requests, latency, verdicts, batches, and how far images are from the training data."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from tumorlens.inference.records import Row

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)
_DISTANCES = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_RECENT = 1000  # images that the drift is a mean over
METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
)  # else anyone could add labels
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"  # where workers keep their numbers, so that any can tell all


class Metrics:
    """Counters of one worker. Labels are routes, known methods, statuses and verdicts: nothing that was sent."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tumorlens_requests", "Requests answered", ("route", "method", "status"), registry=self._registry
        )
        self._latency = Histogram(
            "tumorlens_request_seconds", "From a request's header to the end of its answer", ("route",),
            registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip
        self._verdicts = Counter(
            "tumorlens_verdicts", "Images and slices judged", ("verdict",), registry=self._registry
        )
        self._batches = Histogram(
            "tumorlens_batch_images", "Images that went through the network together", registry=self._registry,
            buckets=(1, 2, 4, 8, 16, 32),
        )  # fmt: skip
        self._distance = Histogram(
            "tumorlens_distance",
            "Distance of an image from the training data, in standard deviations above the mean of validation images",
            registry=self._registry, buckets=_DISTANCES,
        )  # fmt: skip
        self._drift = Gauge(
            "tumorlens_distance_drift",
            f"Mean distance of the last {_RECENT} images of the worker that answered last; 0 as in validation",
            registry=self._registry, multiprocess_mode="livemostrecent",
        )  # fmt: skip
        self._in_work = Gauge(
            "tumorlens_requests_in_work", "Requests in work or waiting", registry=self._registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def in_work(self, n: int) -> None:
        """Tell how many requests are in work or waiting now."""
        self._in_work.set(n)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that ended; 499 is one whose client hung up."""
        self._requests.labels(route, method if method in METHODS else "other", str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def batch(self, n: int) -> None:
        """Count a batch of n images."""
        self._batches.observe(n)

    def judged(self, rows: Sequence[Row]) -> None:
        """Count the verdicts and distances of images and slices."""
        for row in rows:
            if row.kind != "volume":
                self._verdicts.labels(row.verdict.split(":")[0]).inc()
            if row.score is not None:
                self._distance.observe(row.score)
                self._recent.append(row.score)
        if self._recent:
            self._drift.set(sum(self._recent) / len(self._recent))

    def text(self) -> bytes:
        """Prometheus' text format: of all workers where there are several."""
        registry = self._registry
        if os.environ.get(MULTIPROCESS):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
