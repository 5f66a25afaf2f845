"""How much time a request has left, and how much of it a hop may use."""

from __future__ import annotations

import time

import grpc

from superlink.errors import SuperlinkError

# Kept back at every hop, so that a hop's failure can still be told before the caller gives up.
MARGIN_S = 0.05


class Deadline:
    """A point in monotonic time."""

    def __init__(self, seconds: float) -> None:
        """``seconds`` from now."""
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left; negative once it has passed."""
        return self._end - time.monotonic()

    def for_hop(self, cap_s: float | None = None) -> float:
        """The timeout of one call to a worker in seconds: what is left minus the margin, ``cap_s`` at most.

        Raises SuperlinkError ``deadline_exceeded`` when nothing is left.
        """
        left = self.remaining() - MARGIN_S
        if left <= 0:
            raise SuperlinkError(
                "deadline_exceeded",
                "The request ran out of time. Give it a longer deadline.",
                status=grpc.StatusCode.DEADLINE_EXCEEDED,
                service="orchestrator",
            )
        return left if cap_s is None else min(left, cap_s)
