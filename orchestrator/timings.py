"""Where the time of one request went."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from superlink.v1 import types_pb2


@dataclass
class Hop:
    """One call to a worker, as the orchestrator sees it."""

    service: str
    started: float
    first_event_ms: float | None = None
    # Set when the call ends.
    wall_ms: float = 0.0
    # What the worker itself reported of this call.
    reported: list[types_pb2.Timing] = field(default_factory=list)

    def mark_event(self) -> None:
        """Note the arrival of an event; only the first one counts."""
        if self.first_event_ms is None:
            self.first_event_ms = (time.perf_counter() - self.started) * 1000

    def timings(self) -> list[types_pb2.Timing]:
        """The worker's own phases, then ``wall`` (as seen from here) and what the wire took of it.

        The wire's share is known only when the worker reported its ``total``.
        """
        timings = [*self.reported, _timing(self.service, "wall", self.wall_ms)]
        totals = [timing.milliseconds for timing in self.reported if timing.phase == "total"]
        if totals:
            timings.append(_timing("wire", self.service, max(0.0, self.wall_ms - sum(totals))))
        return timings


class TimingLedger:
    """Collects the hops of one request.

    The orchestrator's own time is the time during which no worker had a call of this request in hand.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._milliseconds: dict[tuple[str, str], float] = {}
        self._first_event_ms: dict[str, float] = {}
        self._open_hops = 0
        self._busy_since = 0.0
        self._busy_s = 0.0

    @contextmanager
    def hop(self, service: str) -> Iterator[Hop]:
        """Measure one call to ``service``."""
        hop = Hop(service, time.perf_counter())
        if self._open_hops == 0:
            self._busy_since = hop.started
        self._open_hops += 1
        try:
            yield hop
        finally:
            now = time.perf_counter()
            self._open_hops -= 1
            if self._open_hops == 0:
                self._busy_s += now - self._busy_since
            hop.wall_ms = (now - hop.started) * 1000
            self._add(hop)

    def timings(self) -> list[types_pb2.Timing]:
        """Sums over all closed hops, then the orchestrator's own time and the total so far."""
        total_s = time.perf_counter() - self._started
        return [
            *(_timing(service, phase, value) for (service, phase), value in self._milliseconds.items()),
            *(_timing(service, "first_event", value) for service, value in self._first_event_ms.items()),
            _timing("orchestrator", "own", max(0.0, total_s - self._busy_s) * 1000),
            _timing("orchestrator", "total", total_s * 1000),
        ]

    def _add(self, hop: Hop) -> None:
        for timing in hop.timings():
            key = (timing.service, timing.phase)
            self._milliseconds[key] = self._milliseconds.get(key, 0.0) + timing.milliseconds
        if hop.first_event_ms is not None:
            self._first_event_ms.setdefault(hop.service, hop.first_event_ms)


def milliseconds_of(timings: Iterable[types_pb2.Timing], service: str, phase: str) -> float | None:
    """The entry of ``service`` and ``phase`` in milliseconds, None when there is none."""
    return next((entry.milliseconds for entry in timings if (entry.service, entry.phase) == (service, phase)), None)


def _timing(service: str, phase: str, milliseconds: float) -> types_pb2.Timing:
    return types_pb2.Timing(service=service, phase=phase, milliseconds=milliseconds)
