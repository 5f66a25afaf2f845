"""What a worker measures, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from superlink.configuration import ConfigurationError
from superlink.serving import check_address_is_free

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class WorkerMetrics:
    """The metrics of one worker process, each with the constant label ``service``."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self._queue_wait = Histogram(
            "superlink_worker_queue_wait_seconds",
            "Time from a request's arrival at the batcher to the start of its batch.",
            ["service"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._prepare = Histogram(
            "superlink_worker_prepare_seconds",
            "Time to decode and prepare a request's image, off the model thread.",
            ["service"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._compute = Histogram(
            "superlink_worker_compute_seconds",
            "Time that a batch took in the model thread.",
            ["service"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "superlink_worker_batch_size",
            "Requests in a batch.",
            ["service"],
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        self._flushes = Counter(
            "superlink_worker_batch_flushes",
            "Batches by the reason that closed them: full, bytes, window, deadline, drain.",
            ["service", "reason"],
            registry=self.registry,
        )
        self._requests = Counter(
            "superlink_worker_requests",
            "Requests by outcome: completed, failed, cancelled, expired, rejected, overdue (waited too long).",
            ["service", "outcome"],
            registry=self.registry,
        )
        self._cache = Counter(
            "superlink_worker_feature_cache_lookups",
            "Lookups of image features by result: hit, miss.",
            ["service", "result"],
            registry=self.registry,
        )
        self._queue_size = Gauge(
            "superlink_worker_queue_size", "Requests waiting for a batch.", ["service"], registry=self.registry
        )
        self._ready = Gauge("superlink_worker_ready", "1 after warm-up.", ["service"], registry=self.registry)
        self.set_ready(False)

    def observe_queue_wait(self, seconds: float) -> None:
        """One request waited ``seconds`` for its batch."""
        self._queue_wait.labels(self.service).observe(seconds)

    def observe_prepare(self, seconds: float) -> None:
        """One request's image took ``seconds`` to decode and prepare."""
        self._prepare.labels(self.service).observe(seconds)

    def observe_batch(self, size: int, seconds: float, reason: str) -> None:
        """A batch of ``size`` requests, closed for ``reason``, took ``seconds`` in the model thread."""
        self._batch_size.labels(self.service).observe(size)
        self._compute.labels(self.service).observe(seconds)
        self._flushes.labels(self.service, reason).inc()

    def count_request(self, outcome: str) -> None:
        """One request ended: completed, failed, cancelled, expired, rejected or overdue."""
        self._requests.labels(self.service, outcome).inc()

    def count_cache_lookup(self, hit: bool) -> None:
        """One lookup of image features."""
        self._cache.labels(self.service, "hit" if hit else "miss").inc()

    def set_queue_size(self, size: int) -> None:
        """How many requests wait now."""
        self._queue_size.labels(self.service).set(size)

    def set_ready(self, ready: bool) -> None:
        """Whether the worker serves."""
        self._ready.labels(self.service).set(int(ready))

    def value(self, name: str, **labels: str) -> float:
        """The current value of one sample, 0 when it was never touched: ``value("..._total", outcome="failed")``."""
        return self.registry.get_sample_value(name, {"service": self.service, **labels}) or 0.0

    def serve(self, host: str, port: int, setting: str) -> None:
        """Answer ``GET /metrics`` on ``host:port`` from a thread of its own; ``port`` 0 does nothing.

        Raises ConfigurationError, naming ``setting``, when the port is in use.
        """
        if port == 0:
            return
        check_address_is_free(host, port, setting)
        try:
            start_http_server(port, addr=host.strip("[]"), registry=self.registry)
        except OSError as error:
            raise ConfigurationError(f"{setting}: cannot listen on {host}:{port} ({error.strerror}).") from error
