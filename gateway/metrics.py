"""Prometheus metrics of the gateway."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """One set an application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "superlink_gateway_requests",
            "Requests by path template, method and status.",
            ["path", "method", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "superlink_gateway_request_seconds",
            "From the first byte of the request to the last of the response.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "superlink_gateway_requests_in_flight", "Requests being answered.", registry=self.registry
        )
        self.refusals = Counter(
            "superlink_gateway_refusals",
            "Requests that were not let in, by the code of the problem.",
            ["code"],
            registry=self.registry,
        )
        self.disconnects = Counter(
            "superlink_gateway_disconnects",
            "Requests whose client left before the answer was complete.",
            ["path"],
            registry=self.registry,
        )
