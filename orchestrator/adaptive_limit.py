"""How many requests of one kind are worked on at the same time: as many as latency allows.

Pure logic: it is told what happened and when. Once a window it compares the slow end of the latencies with a target:
one and a half times that of a calm moment, and what waiting in the workers' queues may cost. Behind a queue latency
grows with the number of requests at once, so a limit is off by the factor by which latency is. It grows only when
requests found no room, and by what those say that began among nearly as many as may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


class AdaptiveLimit:
    """Of one kind of request. Times are seconds of one monotonic clock."""

    FIRST, LEAST, MOST = 8, 1, 512
    WINDOW_S, FEWEST_LATENCIES = 0.5, 8
    # Few latencies take longer than a window.
    LONGEST_WINDOW_S = 5.0
    TOLERANCE = 1.5
    # A window says what a request costs without company if at most so many ran at once, and weighs so much then.
    CALM, WEIGHT = 2, 0.3
    # A request says what a full house costs if it began among such a share of the limit.
    CROWDED_SHARE = 0.75
    # A window may change the limit by such factors.
    LESS, MORE = 0.5, 1.25
    # When workers refuse for full queues.
    WHEN_REFUSED = 0.7

    def __init__(self, queue_s: float) -> None:
        """``queue_s``: what waiting in the workers' queues may cost a request."""
        self.limit = self.FIRST
        # The slow end of calm windows; unknown before the first latency.
        self.calm_s = math.nan
        self._queue_s = queue_s
        # Of this window: each latency, and how many requests ran at once when it began.
        self._latencies: list[tuple[float, int]] = []
        self._window_began = -math.inf
        self._was_full = False
        # When the limit was lowered: requests that began before say nothing about it.
        self._lowered_at = -math.inf

    @property
    def target_s(self) -> float:
        """The latency that the slow end of requests may have; infinite while nothing is known."""
        return math.inf if math.isnan(self.calm_s) else self.TOLERANCE * self.calm_s + self._queue_s

    def full(self) -> None:
        """A request finds no room."""
        self._was_full = True

    def end(self, began: float, at_once: int, latency_s: float, now: float) -> None:
        """A request that ``began`` then, as one of ``at_once``, took ``latency_s``, and was answered."""
        if began < self._lowered_at:
            return
        self._latencies.append((latency_s, at_once))
        if math.isinf(self._window_began):
            self._window_began = now
        lasted = now - self._window_began
        enough = len(self._latencies) >= self.FEWEST_LATENCIES
        if lasted >= self.LONGEST_WINDOW_S or (lasted >= self.WINDOW_S and enough):
            self._adapt(now)
            self._begin_window(now)

    def refused(self, began: float, now: float) -> None:
        """A request that ``began`` then met a full queue in a worker."""
        if began >= self._lowered_at:
            self._set(self.limit * self.WHEN_REFUSED)
            self._lowered_at = now
            self._begin_window(now)

    def _adapt(self, now: float) -> None:
        latencies = [latency for latency, _ in self._latencies]
        self._learn(latencies)
        slow_end = _slow_end(latencies)
        if slow_end > self.target_s:
            self._set(self.limit * max(self.target_s / slow_end, self.LESS))
            self._lowered_at = now
            return
        crowded = [latency for latency, at_once in self._latencies if at_once >= self.CROWDED_SHARE * self.limit]
        if self._was_full and crowded:
            self._set(max(self.limit + 1, self.limit * min(self.target_s / _slow_end(crowded), self.MORE)))

    def _learn(self, latencies: Sequence[float]) -> None:
        """What a request costs without company."""
        slow_end = _slow_end(latencies)
        if math.isnan(self.calm_s):
            # Whoever came first had the service to themselves.
            self.calm_s = latencies[0]
        self.calm_s = min(self.calm_s, slow_end)
        if max(at_once for _, at_once in self._latencies) <= self.CALM:
            self.calm_s += self.WEIGHT * (slow_end - self.calm_s)

    def _set(self, limit: float) -> None:
        self.limit = min(max(math.floor(limit), self.LEAST), self.MOST)

    def _begin_window(self, now: float) -> None:
        self._window_began = now
        self._latencies = []
        self._was_full = False


def _slow_end(latencies: Sequence[float]) -> float:
    """What nine of ten keep within."""
    return sorted(latencies)[math.ceil(0.9 * len(latencies)) - 1]
