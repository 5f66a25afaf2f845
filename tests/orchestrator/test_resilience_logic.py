"""The circuit breaker, the retry budget and the adaptive limit, whatever happens to them."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.adaptive_limit import AdaptiveLimit
from orchestrator.breaker import Attempt, CircuitBreaker, Outcome, State
from orchestrator.retry_budget import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, RetryBudget, backoff_s


class BreakerMachine(RuleBasedStateMachine):
    """Calls and probes in any order."""

    @initialize()
    def begin(self) -> None:
        self.breaker = CircuitBreaker()
        self.now = 1000.0
        self.running: list[tuple[Attempt, State]] = []
        self.missed = 0

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.admits())
    @rule()
    def call(self) -> None:
        self.running.append((self.breaker.begin(), self.breaker.state))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome), replaceable=st.booleans())
    def end(self, data: st.DataObject, outcome: Outcome, replaceable: bool) -> None:
        attempt, then = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        before = self.breaker.state
        self.breaker.end(attempt, outcome, self.now, replaceable=replaceable)
        after = self.breaker.state
        # A call closes a breaker only by success, and only if it was sent to find that out.
        if before is not State.CLOSED and after is State.CLOSED:
            assert (then, outcome) == (State.HALF_OPEN, Outcome.ANSWERED)
        # Nothing opens one but a failure.
        if before is not State.OPEN and after is State.OPEN:
            assert outcome in (Outcome.BROKEN, Outcome.HUNG, Outcome.UNREACHABLE)

    @rule(answered=st.booleans())
    def probe(self, answered: bool) -> None:
        before = self.breaker.state
        self.breaker.probe(Outcome.ANSWERED if answered else Outcome.UNREACHABLE, self.now)
        if answered:
            # Who was away and is back is in use at once.
            assert self.missed < CircuitBreaker.MISSED_PROBES or self.breaker.state is State.CLOSED
            self.missed = 0
        else:
            self.missed += 1
            if self.missed >= CircuitBreaker.MISSED_PROBES:
                assert self.breaker.state is State.OPEN
        if before is State.CLOSED and self.breaker.state is State.OPEN:
            assert self.missed >= CircuitBreaker.MISSED_PROBES

    @invariant()
    def it_lets_as_many_pass_as_its_state_says(self) -> None:
        if self.breaker.state is State.CLOSED:
            assert self.breaker.admits()
        if self.breaker.state is State.OPEN:
            assert not self.breaker.admits()
            assert self.breaker.retry_after_s(self.now) >= CircuitBreaker.FIRST_PAUSE_S
            assert self.breaker.retry_after_s(self.now) <= CircuitBreaker.LONGEST_PAUSE_S

    def teardown(self) -> None:
        """Whatever happened: a replica that answers is in use in the end."""
        self.now += CircuitBreaker.LONGEST_PAUSE_S
        self.breaker.probe(Outcome.ANSWERED, self.now)
        for attempt, _ in self.running:
            self.breaker.end(attempt, Outcome.UNKNOWN, self.now, replaceable=True)
        assert self.breaker.admits()
        self.breaker.end(self.breaker.begin(), Outcome.ANSWERED, self.now, replaceable=True)
        assert self.breaker.state is State.CLOSED


TestBreaker = BreakerMachine.TestCase


def fail(breaker: CircuitBreaker, outcome: Outcome, count: int, now: float, replaceable: bool = True) -> None:
    for _ in range(count):
        breaker.end(breaker.begin(), outcome, now, replaceable=replaceable)


def test_a_breaker_opens_when_half_of_the_recent_calls_fail() -> None:
    breaker = CircuitBreaker()
    fail(breaker, Outcome.ANSWERED, 10, 0)
    fail(breaker, Outcome.UNREACHABLE, 9, 0)
    assert breaker.state is State.CLOSED
    fail(breaker, Outcome.UNREACHABLE, 1, 0)
    assert breaker.state is State.OPEN


def test_old_failures_are_forgotten() -> None:
    breaker = CircuitBreaker()
    fail(breaker, Outcome.HUNG, 4, 0)
    fail(breaker, Outcome.HUNG, 1, CircuitBreaker.REMEMBERED_FOR_S + 1)
    assert breaker.state is State.CLOSED


def test_requests_that_break_the_only_replica_do_not_open_its_breaker() -> None:
    breaker = CircuitBreaker()
    fail(breaker, Outcome.BROKEN, 100, 0, replaceable=False)
    assert breaker.state is State.CLOSED
    fail(breaker, Outcome.BROKEN, 5, 0, replaceable=True)
    assert breaker.state is State.OPEN


def test_a_replica_that_fails_its_trials_waits_longer_each_time() -> None:
    breaker = CircuitBreaker()
    now, pauses = 0.0, []
    fail(breaker, Outcome.BROKEN, 5, now)
    for _ in range(7):
        pause_s = breaker.retry_after_s(now)
        pauses.append(pause_s)
        breaker.probe(Outcome.ANSWERED, now + pause_s - 0.01)
        assert breaker.state is State.OPEN
        now += pause_s
        breaker.probe(Outcome.ANSWERED, now)
        assert breaker.state is State.HALF_OPEN
        trials = [breaker.begin() for _ in range(CircuitBreaker.TRIALS)]
        assert not breaker.admits()
        breaker.end(trials[0], Outcome.BROKEN, now, replaceable=True)
        assert breaker.state is State.OPEN
        # The others were sent before, and change nothing.
        breaker.end(trials[1], Outcome.ANSWERED, now, replaceable=True)
        assert breaker.state is State.OPEN
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


@given(
    share=st.floats(0, 1),
    calls=st.lists(st.sampled_from(["call", "repeat"]), max_size=300),
)
def test_repetitions_never_exceed_their_share_and_what_the_bucket_holds(share: float, calls: list[str]) -> None:
    budget = RetryBudget(share)
    first, repeated = 0, 0
    for each in calls:
        if each == "call":
            budget.note_call()
            first += 1
        elif budget.take():
            repeated += 1
        assert repeated <= (share * first + RetryBudget.HOLDS if share else 0) + 1e-6


def test_a_budget_that_was_used_up_fills_again() -> None:
    budget = RetryBudget(0.1)
    while budget.take():
        pass
    for _ in range(10):
        assert not budget.take()
        budget.note_call()
    # Sums of tenths are a little less than they should be.
    budget.note_call()
    assert budget.take()


@given(st.integers(1, 50))
def test_backoff_grows_with_full_jitter_and_has_an_end(repetition: int) -> None:
    most = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (repetition - 1))
    waits = [backoff_s(repetition) for _ in range(50)]
    assert all(0 <= wait <= most for wait in waits)
    assert max(waits) - min(waits) > most / 4


class Service:
    """A closed loop in which always more want in than may; ``latency`` of the number that runs at once."""

    def __init__(self, latency: Callable[[int], float], queue_s: float = 1.0) -> None:
        self.latency = latency
        self.limit = AdaptiveLimit(queue_s)
        self.now = 0.0

    def calm(self, count: int) -> None:
        for _ in range(count):
            began, took = self.now, self.latency(1)
            self.now += took
            self.limit.end(began, 1, took, self.now)

    def crowd(self, seconds: float) -> None:
        ends = self.now + seconds
        while self.now < ends:
            began, at_once = self.now, self.limit.limit
            took = self.latency(at_once)
            self.limit.full()
            self.now += took
            for _ in range(at_once):
                self.limit.end(began, at_once, took, self.now)


@settings(deadline=None)
@given(work_s=st.floats(0.01, 0.5), queue_s=st.floats(0.05, 3))
def test_behind_one_worker_the_limit_settles_where_latency_meets_the_target(work_s: float, queue_s: float) -> None:
    service = Service(lambda at_once: at_once * work_s, queue_s)
    service.calm(20)
    service.crowd(60)
    target_s = service.limit.target_s
    # Two at once count as calm, and take twice as long here.
    assert 1.49 * work_s + queue_s <= target_s <= 3.01 * work_s + queue_s
    fitting = target_s / work_s
    assert 0.7 * fitting - 1 <= service.limit.limit <= 1.3 * fitting + 1


@settings(deadline=None)
@given(st.floats(0.01, 0.5))
def test_a_service_that_does_not_slow_down_gets_all_that_comes(work_s: float) -> None:
    service = Service(lambda at_once: work_s)
    service.calm(20)
    service.crowd(20)
    assert service.limit.limit >= 200


def test_the_limit_does_not_grow_while_there_is_room() -> None:
    service = Service(lambda at_once: 0.01)
    service.calm(1000)
    assert service.limit.limit == AdaptiveLimit.FIRST


def test_the_limit_follows_a_service_that_becomes_slower_for_good() -> None:
    service = Service(lambda at_once: at_once * 0.01)
    service.calm(20)
    service.crowd(30)
    before = service.limit.limit
    service.latency = lambda at_once: at_once * 0.2
    service.crowd(60)
    assert AdaptiveLimit.LEAST <= service.limit.limit < before / 5
    service.latency = lambda at_once: at_once * 0.01
    service.crowd(30)
    assert service.limit.limit == pytest.approx(before, rel=0.4)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("end"), st.floats(0, 100), st.integers(1, 600)),
            st.tuples(st.just("refused"), st.floats(0, 10), st.just(0)),
            st.tuples(st.just("full"), st.floats(0, 10), st.just(0)),
        ),
        max_size=300,
    )
)
def test_the_limit_keeps_its_bounds_whatever_it_is_told(events: list[tuple[str, float, int]]) -> None:
    limit = AdaptiveLimit(1.0)
    now = 0.0
    for kind, seconds, at_once in events:
        began = now
        now += seconds
        match kind:
            case "end":
                limit.end(began, at_once, seconds, now)
            case "refused":
                limit.refused(began, now)
            case _:
                limit.full()
        assert AdaptiveLimit.LEAST <= limit.limit <= AdaptiveLimit.MOST
        assert math.isnan(limit.calm_s) or limit.calm_s >= 0


def test_full_queues_of_workers_lower_the_limit_once_for_those_that_met_them_together() -> None:
    limit = AdaptiveLimit(1.0)
    for _ in range(50):
        limit.refused(began=1.0, now=1.5)
    assert limit.limit == math.floor(AdaptiveLimit.FIRST * AdaptiveLimit.WHEN_REFUSED)


def test_a_replica_that_comes_and_goes_is_used_again_at_once_each_time() -> None:
    breaker = CircuitBreaker()
    for now in range(20):
        breaker.probe(Outcome.UNREACHABLE, now)
        breaker.probe(Outcome.UNREACHABLE, now)
        assert breaker.state is State.OPEN
        assert breaker.retry_after_s(now) == CircuitBreaker.FIRST_PAUSE_S
        breaker.probe(Outcome.ANSWERED, now)
        assert breaker.state is State.CLOSED
