"""How much time a request has left, and how much of it a hop may use."""

from __future__ import annotations

import time

import grpc

from superlink.deadlines import hop_timeout_s
from superlink.errors import SuperlinkError


class Deadline:
    """A point in monotonic time."""

    def __init__(self, seconds: float) -> None:
        """``seconds`` from now."""
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left; negative once it has passed."""
        return self._end - time.monotonic()

    def for_hop(self, cap_s: float | None = None, *, share: float = 1.0) -> float:
        """The timeout of one call to a worker in seconds: what is left without the reserve, ``cap_s`` at most.

        ``share`` below 1 leaves the rest to the calls that come after this one. Raises SuperlinkError
        ``deadline_exceeded`` when nothing is left.
        """
        left = share * hop_timeout_s(self.remaining())
        if left <= 0:
            raise out_of_time()
        return left if cap_s is None else min(left, cap_s)


def out_of_time() -> SuperlinkError:
    """Nothing is left of a request's time."""
    return SuperlinkError(
        "deadline_exceeded",
        "The request ran out of time. Give it a longer deadline.",
        status=grpc.StatusCode.DEADLINE_EXCEEDED,
        service="orchestrator",
    )
