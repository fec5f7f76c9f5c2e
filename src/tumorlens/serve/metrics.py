"""Metrics for Prometheus: requests, latency, verdicts, batches, and how far images are from the training data."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from tumorlens.inference.records import Record

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)
_DISTANCES = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_RECENT = 1000  # images over which the drift is averaged


class Metrics:
    """Counters of one worker. Labels are routes, known methods, statuses and verdicts: nothing that was sent.

    With several workers, `PROMETHEUS_MULTIPROC_DIR` names a folder where each keeps its numbers, so that any of them
    can report the sum. A worker holds a file lock there while it lives; from the lock others see that it died.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tumorlens_requests", "Requests answered", ("route", "method", "status"), registry=self._registry
        )
        self._latency = Histogram(
            "tumorlens_request_seconds", "From a request's header to the end of its response", ("route",),
            registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip
        self._verdicts = Counter(
            "tumorlens_verdicts", "Images and slices by verdict", ("verdict",), registry=self._registry
        )
        self.batches = Histogram(
            "tumorlens_batch_images", "Images per run of the network", registry=self._registry,
            buckets=(1, 2, 4, 8, 16, 32),
        )  # fmt: skip
        self._distance = Histogram(
            "tumorlens_distance",
            "Distance of an image from the training data, in standard deviations above the mean of validation images",
            registry=self._registry, buckets=_DISTANCES,
        )  # fmt: skip
        self._drift = Gauge(
            "tumorlens_distance_drift",
            f"Mean distance of the last {_RECENT} images of the worker that responded last; 0 as in validation",
            registry=self._registry, multiprocess_mode="livemostrecent",
        )  # fmt: skip
        self.active = Gauge(
            "tumorlens_requests_in_work", "Requests active or waiting", registry=self._registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._folder = Path(folder) if (folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR")) else None
        if self._folder:
            self._alive = FileLock(self._folder / f"{os.getpid()}.lock")
            self._alive.acquire()

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that ended; status 499 if its client closed the connection."""
        self._requests.labels(route, method, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def count_records(self, rows: Sequence[Record]) -> None:
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
        """Prometheus' text format, of all workers."""
        if self._folder is None:
            return generate_latest(self._registry)
        for path in {*self._folder.glob("*.lock")} - {Path(self._alive.lock_file)}:
            with suppress(Timeout), FileLock(path, timeout=0):  # free, so its worker died
                mark_process_dead(int(path.stem))  # type: ignore[no-untyped-call]  # drops gauges, keeps counters
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
