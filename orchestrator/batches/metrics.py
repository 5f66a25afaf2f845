"""Prometheus metrics of a worker of batches. What is counted of all batches, the worker says whose keeper leads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """One set a process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.leads = Gauge(
            "superlink_batches_keeper", "1 where this worker looks after the batches.", registry=self.registry
        )
        self.consumes = Gauge(
            "superlink_batches_consumes", "1 while the loop that takes steps from Redis runs.", registry=self.registry
        )
        self.open = Gauge("superlink_batches_open", "Batches by status.", ["status"], registry=self.registry)
        self.ended = Counter("superlink_batches_ended", "Batches that were over.", ["status"], registry=self.registry)
        self.lines = Counter(
            "superlink_batches_lines",
            "Lines that were answered, or got an error.",
            ["outcome"],
            registry=self.registry,
        )
        self.published = Counter(
            "superlink_batches_steps_published", "Steps that were handed out.", ["step"], registry=self.registry
        )
        self.lost = Counter(
            "superlink_batches_steps_lost",
            "Steps that were handed out and came to nothing, so that they are handed out again.",
            ["step"],
            registry=self.registry,
        )
        self.waiting = Gauge(
            "superlink_batches_steps_waiting", "Steps that no worker has taken yet.", registry=self.registry
        )
        self.webhooks = Counter(
            "superlink_batches_webhooks", "Webhooks by what became of them.", ["outcome"], registry=self.registry
        )
        self.failures = Counter(
            "superlink_batches_keeper_failures",
            "Times that the keeper could not go on, by the code of the reason.",
            ["code"],
            registry=self.registry,
        )
