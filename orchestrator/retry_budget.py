"""When a call that failed may be sent again: not too often, and not at the same moment as everybody else's."""

from __future__ import annotations

import random


class RetryBudget:
    """A bucket of tokens: every call puts a share of one in, every repetition takes one out.

    So the repetitions are a share of the calls, whatever happens, and never make an overload worse. What the bucket
    holds at first covers the odd failure among few calls.
    """

    HOLDS = 10.0

    def __init__(self, share: float) -> None:
        """``share``: of repetitions in calls; 0 allows none."""
        self._share = share
        self._tokens = self.HOLDS if share else 0.0

    def note_call(self) -> None:
        """A call is sent for the first time."""
        self._tokens = min(self.HOLDS, self._tokens + self._share)

    def take(self) -> bool:
        """Whether a call may be repeated; if so, that is paid for."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.05, 1.0


def backoff_s(repetition: int) -> float:
    """Seconds to wait before ``repetition`` 1, 2, …: exponential with full jitter."""
    return random.uniform(0, min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (repetition - 1)))  # noqa: S311 (no secret)
