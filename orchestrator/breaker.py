"""A circuit breaker: whether one replica of a service gets calls.

Pure logic: it is told what happened and when, and never looks at a clock or a socket.

*Closed*, calls pass. It *opens* when probes miss the replica, or when most of its recent calls fail. After the first, a
probe that is answered closes it: the replica is back. After the second, probes were answered all the time, so only
calls can tell: it is *half-open* for a few of them once a pause has passed, and closes with the first that succeeds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Of a breaker, as metrics, ``/readyz`` and logs call it."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Outcome(StrEnum):
    """What a call or a probe says about the replica."""

    # It answered; of a request that is wrong, or while its queue is full, too.
    ANSWERED = "answered"
    # It failed at a request that is not at fault.
    BROKEN = "broken"
    # It took a call and gave no answer in any reasonable time.
    HUNG = "hung"
    # There was no connection, or it broke, or the replica takes no calls.
    UNREACHABLE = "unreachable"
    # Nothing: the caller left, or had no time.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Attempt:
    """A call that a breaker let pass."""

    # What was decided since then is no longer this call's business.
    generation: int


class CircuitBreaker:
    """Of one replica. Times are seconds of one monotonic clock."""

    # Opens when so many, and half, of the calls that are remembered have failed.
    FEWEST_FAILURES = 5
    REMEMBERED_CALLS = 20
    REMEMBERED_FOR_S = 30.0
    # One may be lost on the way.
    MISSED_PROBES = 2
    # Before calls are tried again; twice as long each time that they fail again.
    FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
    # Calls that may run while half-open.
    TRIALS = 3

    def __init__(self) -> None:
        self.state = State.CLOSED
        # Why it opened last; UNKNOWN before.
        self.cause = Outcome.UNKNOWN
        self._calls: deque[tuple[float, bool]] = deque(maxlen=self.REMEMBERED_CALLS)
        self._missed = 0
        self._generation = 0
        self._trials = 0
        self._pause_s = 0.0
        self._closed_since = 0.0
        self._pause_ends = 0.0

    @property
    def has_missed_probes(self) -> bool:
        """Whether the last probe was not answered."""
        return self._missed > 0

    def admits(self) -> bool:
        """Whether a call may be sent now."""
        return self.state is State.CLOSED or (self.state is State.HALF_OPEN and self._trials < self.TRIALS)

    def begin(self) -> Attempt:
        """A call is sent, which ``admits`` has allowed. ``end`` must follow."""
        if self.state is State.HALF_OPEN:
            self._trials += 1
        return Attempt(self._generation)

    def end(self, attempt: Attempt, outcome: Outcome, now: float, *, replaceable: bool) -> None:
        """The call is over.

        ``replaceable``: others can do the replica's work. Else it stays closed to requests that break it: they fail at
        once anyway, and the requests of others may well succeed.
        """
        if attempt.generation != self._generation:
            return
        if self.state is State.HALF_OPEN:
            self._trials -= 1
            if outcome is Outcome.ANSWERED:
                self._close(now)
            elif outcome is not Outcome.UNKNOWN:
                self._pause(outcome, now)
            return
        if outcome is Outcome.UNKNOWN or (outcome is Outcome.BROKEN and not replaceable):
            return
        failed = outcome is not Outcome.ANSWERED
        self._calls.append((now, failed))
        while self._calls and self._calls[0][0] < now - self.REMEMBERED_FOR_S:
            self._calls.popleft()
        failures = sum(each for _, each in self._calls)
        if failed and failures >= self.FEWEST_FAILURES and 2 * failures >= len(self._calls):
            self._pause(outcome, now)

    def eject(self, now: float) -> None:
        """Open, because the replica is far slower than its like."""
        self._pause(Outcome.HUNG, now)

    def probe(self, outcome: Outcome, now: float) -> None:
        """A probe of the replica's health is over: ANSWERED by one that takes calls, else UNREACHABLE or HUNG."""
        if outcome is not Outcome.ANSWERED:
            self._missed += 1
            if self._missed >= self.MISSED_PROBES:
                self._open(outcome)
            return
        was_away = self._missed >= self.MISSED_PROBES
        self._missed = 0
        if self.state is not State.OPEN:
            return
        if was_away:
            self._close(now)
        elif now >= self._pause_ends:
            self.state = State.HALF_OPEN
            self._generation += 1
            self._trials = 0

    def retry_after_s(self, now: float) -> float:
        """When a refused caller may be served, at least the first pause: nobody knows when a replica comes back."""
        return max(self.FIRST_PAUSE_S, self._pause_ends - now)

    def _pause(self, cause: Outcome, now: float) -> None:
        """Open for a while, since probes will not tell when it is fine again."""
        has_been_fine = self.state is State.CLOSED and now - self._closed_since >= self.LONGEST_PAUSE_S
        again = self._pause_s > 0 and not has_been_fine
        self._pause_s = min(2 * self._pause_s, self.LONGEST_PAUSE_S) if again else self.FIRST_PAUSE_S
        self._pause_ends = now + self._pause_s
        self._open(cause)

    def _open(self, cause: Outcome) -> None:
        self.cause = cause
        if self.state is not State.OPEN:
            self.state = State.OPEN
            self._generation += 1

    def _close(self, now: float) -> None:
        self.state = State.CLOSED
        self._closed_since = now
        self._generation += 1
        self._calls.clear()
