"""The gateway's share of a request's time, and the ``Server-Timing`` header."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gateway.results import TimingEntry, timing_of


def add_gateway_timings(timings: list[TimingEntry], started: float, asked: float) -> None:
    """Append the wire to the orchestrator, the gateway's own time and the total so far.

    ``started`` is when the request came in, ``asked`` when the orchestrator was called, both by ``perf_counter``.
    """
    now = time.perf_counter()
    call_ms = (now - asked) * 1000
    for entry in timings:
        if (entry.service, entry.phase) == ("orchestrator", "total"):
            timings.append(timing_of("wire", "orchestrator", max(0.0, call_ms - entry.milliseconds)))
            break
    timings.append(timing_of("gateway", "own", (asked - started) * 1000))
    timings.append(timing_of("gateway", "total", (now - started) * 1000))


def server_timing(timings: Sequence[TimingEntry]) -> str:
    """The value of the header: ``mllm_compute;dur=81.2, gateway_total;dur=130.4``."""
    return ", ".join(f"{entry.service}_{entry.phase};dur={entry.milliseconds:.1f}" for entry in timings)
