"""The replicas of one service: where they are, which of them get calls, and which one gets the next.

Every replica has a channel of its own, a circuit breaker, and a task that asks for its health once a second, and four
times a second while it does not answer. Names are resolved again every few seconds, and as soon as a replica fails.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from statistics import median
from typing import Generic, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.addresses import Resolve, is_literal, resolve
from orchestrator.breaker import Attempt, CircuitBreaker, Outcome, State
from orchestrator.metrics import Metrics
from superlink.channels import open_replica_channel
from superlink.errors import SuperlinkError

logger = logging.getLogger(__name__)

PROBE_INTERVAL_S, PROBE_INTERVAL_WHEN_MISSED_S = 1.0, 0.25
# A busy machine may let a healthy worker wait for a second.
PROBE_TIMEOUT_S = 2.0
RESOLVE_INTERVAL_S, SHORTEST_RESOLVE_INTERVAL_S = 5.0, 0.5
# How long a replica that left keeps its calls.
FAREWELL_S = 60.0
# A replica that has the image in its cache is preferred as long as it has at most so many calls more than another.
MORE_CALLS_FOR_AFFINITY = 2
# A replica is far slower than its like if its typical time is so many times theirs, and by at least so much.
SLOW_FACTOR, SLOW_BY_S = 4.0, 0.05
FEWEST_TIMES, KEPT_TIMES = 10, 32
# A call that got nothing for so long, and for so many typical times, hangs.
HUNG_AFTER_S, HUNG_FACTOR = 5.0, 4.0

Stub = TypeVar("Stub")
MakeStub = Callable[[grpc.aio.Channel], Stub]


@dataclass(frozen=True)
class Standing:
    """How a service stands, for probes and people."""

    # Closed when any replica's breaker is, open when all are.
    state: State
    replicas: int
    # Those that get calls.
    in_use: int


class Replica(Generic[Stub]):
    """One server of a service."""

    def __init__(self, address: str, make_stub: MakeStub[Stub]) -> None:
        self.address = address
        self.channel = open_replica_channel(address)
        self.stub = make_stub(self.channel)
        self.breaker = CircuitBreaker()
        # Calls under way.
        self.outstanding = 0
        # Whether it has ever answered: one that has yet to start is not missed.
        self.has_answered = False
        # Set while it does not answer probes: what waits for it need not wait on.
        self.gone = asyncio.Event()
        # Whether it answered the last probe by saying that it takes no calls.
        self.is_resting = False
        # Set to have it probed now.
        self.wake = asyncio.Event()
        # Seconds from a call to its first event.
        self.times: deque[float] = deque(maxlen=KEPT_TIMES)
        self._health = health_pb2_grpc.HealthStub(self.channel)

    async def probe(self) -> Outcome:
        """Ask for its health."""
        try:
            answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self.is_resting = False
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                # It has as many calls in hand as its server takes (``superlink.serving.MOST_CALLS``), and says so.
                return Outcome.ANSWERED
            return Outcome.HUNG if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else Outcome.UNREACHABLE
        self.is_resting = answer.status != health_pb2.HealthCheckResponse.SERVING
        return Outcome.UNREACHABLE if self.is_resting else Outcome.ANSWERED

    async def check(self, timeout_s: float, service: str) -> None:
        """Raise SuperlinkError ``not_ready`` unless it says that it serves, and AioRpcError when it does not answer."""
        answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise SuperlinkError(
                "not_ready",
                f"The {service} service is starting or draining.",
                status=grpc.StatusCode.UNAVAILABLE,
                service=service,
            )

    def is_out_of_reach(self) -> bool:
        """Whether there is no connection to it; a call that still waits has not been sent."""
        return self.channel.get_state() is not grpc.ChannelConnectivity.READY

    def has_hung(self, seconds: float) -> bool:
        """Whether a call that got nothing in ``seconds`` should have got something."""
        return seconds >= max(HUNG_AFTER_S, HUNG_FACTOR * (median(self.times) if self.times else 0.0))


class ReplicaPool(Generic[Stub]):
    """All replicas of one service. Use it as a context, within one event loop."""

    def __init__(
        self,
        service: str,
        addresses: Sequence[str],
        make_stub: MakeStub[Stub],
        metrics: Metrics,
        resolve_address: Resolve = resolve,
    ) -> None:
        """``addresses``: each ``host:port``, or a name that stands for several."""
        self.service = service
        self._addresses = addresses
        self._make_stub = make_stub
        self._metrics = metrics
        self._resolve = resolve_address
        self._replicas: dict[str, Replica[Stub]] = {}
        # By address: the task that looks after a replica.
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._farewells: set[asyncio.Task[None]] = set()
        self._resolved = asyncio.Event()
        self._resolve_now = asyncio.Event()
        self._resolving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ReplicaPool[Stub]:
        literal = [address for address in self._addresses if is_literal(address)]
        self._set(literal)
        if len(literal) == len(self._addresses):
            self._resolved.set()
        else:
            self._resolving = asyncio.create_task(self._follow_names(), name=f"resolving {self.service}")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._watches.values(), *self._farewells, *([self._resolving] if self._resolving else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for replica in self._replicas.values():
            await replica.channel.close(None)

    @property
    def replicas(self) -> Collection[Replica[Stub]]:
        """All that are known."""
        return self._replicas.values()

    def standing(self) -> Standing:
        """How the service stands."""
        states = [replica.breaker.state for replica in self.replicas]
        state = next((each for each in (State.CLOSED, State.HALF_OPEN) if each in states), State.OPEN)
        return Standing(state, len(states), sum(each is not State.OPEN for each in states))

    async def choose(
        self, key: str, tried: Collection[Replica[Stub]] = (), timeout_s: float = PROBE_TIMEOUT_S
    ) -> Replica[Stub]:
        """The replica for the next call: the less busy one of two, or the one that ``key`` prefers.

        ``key`` is the digest of the request's image, or empty. Those that were ``tried`` come last. Raises
        SuperlinkError when none takes calls.
        """
        if not self._resolved.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._resolved.wait(), timeout_s)
        admitting = [replica for replica in self.replicas if replica.breaker.admits()]
        if not admitting:
            raise self.unavailable()
        candidates = [replica for replica in admitting if replica not in tried] or admitting
        if len(candidates) == 1:
            return candidates[0]
        chosen = min(random.sample(candidates, 2), key=lambda replica: replica.outstanding)
        if key:
            preferred = max(candidates, key=lambda replica: _affinity(key, replica.address))
            if preferred.outstanding <= chosen.outstanding + MORE_CALLS_FOR_AFFINITY:
                return preferred
        return chosen

    def check_available(self) -> None:
        """Raise SuperlinkError when no replica takes calls, as far as is known yet."""
        if self._resolved.is_set() and self.standing().state is State.OPEN:
            raise self.unavailable()

    def has_other(self, replica: Replica[Stub]) -> bool:
        """Whether another one would take a call in place of ``replica``."""
        return any(each is not replica and each.breaker.admits() for each in self.replicas)

    def begin(self, replica: Replica[Stub]) -> Attempt:
        """A call is sent to ``replica``. ``end`` must follow."""
        replica.outstanding += 1
        return replica.breaker.begin()

    def end(self, replica: Replica[Stub], attempt: Attempt, outcome: Outcome, first_event_s: float | None) -> None:
        """The call is over; ``first_event_s``: how long its first event took, None when there was none."""
        replica.outstanding -= 1
        now = time.monotonic()
        before = replica.breaker.state
        replica.breaker.end(attempt, outcome, now, replaceable=self._can_do_without(replica))
        if outcome is Outcome.ANSWERED and first_event_s is not None:
            replica.has_answered = True
            replica.times.append(first_event_s)
            if self._is_far_slower(replica):
                replica.breaker.eject(now)
        elif outcome is Outcome.UNREACHABLE:
            replica.wake.set()
        self._note(replica, before)

    def unavailable(self) -> SuperlinkError:
        """No replica takes calls."""
        now = time.monotonic()
        waits = [replica.breaker.retry_after_s(now) for replica in self.replicas]
        what = "service" if self.service == "mllm" else "decoder"
        reason = "none of its replicas can be reached" if waits else "its name leads nowhere"
        if any(replica.is_resting for replica in self.replicas):
            reason = "it is starting or draining"
        elif any(replica.breaker.cause in (Outcome.BROKEN, Outcome.HUNG) for replica in self.replicas):
            reason = "it fails or does not answer"
        return SuperlinkError(
            "unavailable" if self.service == "mllm" else "decoder_unavailable",
            f"The {self.service} {what} is unavailable: {reason}. Try again after the delay; if it lasts, see that its "
            "process runs.",
            status=grpc.StatusCode.UNAVAILABLE,
            service=self.service,
            retry_after_ms=round(1000 * min(waits, default=CircuitBreaker.FIRST_PAUSE_S)),
        )

    def _closed_others(self, replica: Replica[Stub]) -> list[Replica[Stub]]:
        return [each for each in self.replicas if each is not replica and each.breaker.state is State.CLOSED]

    def _can_do_without(self, replica: Replica[Stub]) -> bool:
        """Whether half of the replicas at least stay in use without ``replica``."""
        others = self._closed_others(replica)
        return bool(others) and 2 * len(others) >= len(self._replicas)

    def _is_far_slower(self, replica: Replica[Stub]) -> bool:
        if replica.breaker.state is not State.CLOSED or len(replica.times) < FEWEST_TIMES:
            return False
        others = [median(each.times) for each in self._closed_others(replica) if len(each.times) >= FEWEST_TIMES]
        if not others or not self._can_do_without(replica):
            return False
        usual = median(others)
        return median(replica.times) > max(SLOW_FACTOR * usual, usual + SLOW_BY_S)

    async def _follow_names(self) -> None:
        """Keep the replicas what the names stand for."""
        known: dict[str, Sequence[str]] = {}
        while True:
            for address in self._addresses:
                # A name that cannot be resolved now stands for what it stood for last.
                with suppress(OSError):
                    known[address] = await self._resolve(address)
            found = [each for address in self._addresses for each in known.get(address, ())]
            if len(known) == len(self._addresses):
                self._set(found)
            self._resolved.set()
            await asyncio.sleep(SHORTEST_RESOLVE_INTERVAL_S)
            if self._replicas:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._resolve_now.wait(), RESOLVE_INTERVAL_S - SHORTEST_RESOLVE_INTERVAL_S)
            self._resolve_now.clear()

    def _set(self, addresses: Sequence[str]) -> None:
        """Make the replicas those at ``addresses``. One that left finishes its calls."""
        for address in [each for each in self._replicas if each not in addresses]:
            self._watches.pop(address).cancel()
            replica = self._replicas.pop(address)
            farewell = asyncio.create_task(replica.channel.close(FAREWELL_S))
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)
            logger.info("replica left", extra={"callee": self.service, "address": address})
        for address in addresses:
            if address not in self._replicas:
                replica = Replica(address, self._make_stub)
                self._replicas[address] = replica
                self._watches[address] = asyncio.create_task(self._watch(replica), name=f"watching {address}")
        self._show()

    async def _watch(self, replica: Replica[Stub]) -> None:
        """Probe ``replica`` for ever."""
        while True:
            replica.wake.clear()
            outcome = await replica.probe()
            before = replica.breaker.state
            replica.breaker.probe(outcome, time.monotonic())
            if replica.breaker.state is State.OPEN and replica.breaker.has_missed_probes:
                replica.gone.set()
            elif outcome is Outcome.ANSWERED:
                replica.has_answered = True
                replica.gone.clear()
            self._note(replica, before)
            if replica.breaker.state is State.CLOSED and not replica.breaker.has_missed_probes:
                with suppress(TimeoutError):
                    await asyncio.wait_for(replica.wake.wait(), PROBE_INTERVAL_S)
            else:
                await asyncio.sleep(PROBE_INTERVAL_WHEN_MISSED_S)

    def _note(self, replica: Replica[Stub], before: State) -> None:
        """Tell metrics and the log what has changed."""
        state = replica.breaker.state
        if state is before:
            return
        facts: Mapping[str, object] = {
            "callee": self.service,
            "address": replica.address,
            "breaker": state.value,
            "cause": replica.breaker.cause.value,
        }
        if state is State.OPEN:
            replica.times.clear()
            self._resolve_now.set()
            if replica.has_answered:
                self._metrics.ejections.labels(self.service, replica.breaker.cause.value).inc()
            logger.log(logging.WARNING if replica.has_answered else logging.INFO, "replica gets no calls", extra=facts)
        elif state is State.CLOSED:
            logger.info("replica gets calls", extra=facts)
        self._show()

    def _show(self) -> None:
        for state in State:
            count = sum(replica.breaker.state is state for replica in self.replicas)
            self._metrics.replicas.labels(self.service, state.value).set(count)


def _affinity(key: str, address: str) -> bytes:
    """Highest for the replica that ``key`` belongs to (rendezvous hashing): only the keys of one that leaves move."""
    return blake2b(f"{key} {address}".encode(), digest_size=8).digest()
