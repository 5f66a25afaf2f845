"""Prometheus metrics of the answer engine."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from superlink.v1 import types_pb2

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """One set a server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "superlink_orchestrator_requests",
            "Requests by method and by the code of their outcome ('ok' for success).",
            ["method", "code"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "superlink_orchestrator_requests_in_flight", "Requests being answered.", ["method"], registry=self.registry
        )
        self.tool_calls = Counter(
            "superlink_orchestrator_tool_calls",
            "Tool calls by decoder and by the code of their outcome ('ok' for success).",
            ["decoder", "code"],
            registry=self.registry,
        )
        self.prefetches = Counter(
            "superlink_orchestrator_prefetches",
            "Images sent ahead, by decoder and by the code of the outcome ('ok'; 'overtaken' by the answer's end).",
            ["decoder", "code"],
            registry=self.registry,
        )
        self.replicas = Gauge(
            "superlink_orchestrator_replicas",
            "Replicas of a service by the state of their circuit breaker: closed, half_open, open.",
            ["service", "state"],
            registry=self.registry,
        )
        self.ejections = Counter(
            "superlink_orchestrator_ejections",
            "Times that a replica was taken out of use, by cause: unreachable, hung, broken.",
            ["service", "cause"],
            registry=self.registry,
        )
        self.retries = Counter(
            "superlink_orchestrator_retries",
            "Calls worth repeating: 'sent' again, or not for want of budget ('no_budget') or time ('no_time').",
            ["service", "outcome"],
            registry=self.registry,
        )
        self.concurrency_limit = Gauge(
            "superlink_orchestrator_concurrency_limit",
            "Requests of a kind that are worked on at the same time, at most, now.",
            ["kind"],
            registry=self.registry,
        )
        self.waiting = Gauge(
            "superlink_orchestrator_requests_waiting", "Requests waiting for a place.", ["kind"], registry=self.registry
        )
        self.rounds = Histogram(
            "superlink_orchestrator_rounds",
            "Observation rounds of an answer.",
            buckets=(0, 1, 2, 3, 4, 6, 8),
            registry=self.registry,
        )
        self.hop_seconds = Histogram(
            "superlink_orchestrator_hop_seconds",
            "Time per request by service and phase: the worker's own phases, 'wall' as seen from the orchestrator.",
            ["service", "phase"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def observe_timings(self, timings: Iterable[types_pb2.Timing]) -> None:
        """Count the phases of one finished request."""
        for timing in timings:
            self.hop_seconds.labels(timing.service, timing.phase).observe(timing.milliseconds / 1000)
