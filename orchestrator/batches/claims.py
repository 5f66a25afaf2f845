"""What the keeper and the workers keep in Redis: who does what at the moment. All of it may be lost at any time.

A step of a batch is *claimed* by a key of its own: from its publication on by the keeper, and while it is done by the
process that does it, which renews the claim. A step without a claim is nobody's, and is published again; so a step is
done again when its message was lost, when its process died, and when Redis forgot everything. A second message for a
step that is claimed is dropped. Effects are in the artifact store, and the same however often a step is done.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.batches.celery_app import KEY_PREFIX, PRIORITY_STEPS, QUEUE
from superlink.batch_store import BatchName
from superlink.batch_tickets import fresh_ticket, ticket_key
from superlink.batch_workers import WAKE_KEY, WORKERS_KEY
from superlink.errors import SuperlinkError
from superlink.redis_connection import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, redis_failures

_PREFIX = "superlink:batches:"
KEEPER_KEY = f"{_PREFIX}keeper"

# A message that nobody has taken after this was lost, or its queue is long: then a second one does no harm.
QUEUED_S = 20
# A process that does not renew its claim so long is dead, or cannot reach Redis.
RUNNING_S = 10
RENEW_EVERY_S = 2.0
# Of who looks after the batches.
KEEPER_S = 8
# Of a worker in the list of workers.
WORKER_S = 15
# Deaths are counted so long.
_DEATHS_S = 24 * 3600
_QUEUED, _WAITING = b"queued", b"waiting"

# KEYS: the claim. ARGV: token; seconds.
# Claims of others stand; one that has run out is taken anew. Returns 1 where it is ours.
_RENEW = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  return 1
end
if not holder then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  return 1
end
return 0
"""
# KEYS: the claim. ARGV: token; seconds. Takes over what is only queued.
_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= 'queued' and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""
# KEYS: the claim. ARGV: token.
_DROP = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
# KEYS: the claim. ARGV: token; seconds. The step is nobody's again when they are over.
_POSTPONE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], 'waiting', 'EX', ARGV[2]) end
"""


@dataclass(frozen=True)
class Step:
    """A part of the work for a batch: plan, a shard, assemble, notify."""

    batch: BatchName
    # "plan", "assemble", "notify", or the number of a shard.
    what: str

    @property
    def is_shard(self) -> bool:
        """Whether it is a part of the lines."""
        return self.what.isdecimal()

    @property
    def claim(self) -> str:
        """Its key."""
        return f"{_PREFIX}claim:{self.batch.owner}:{self.batch.id}:{self.what}"

    @property
    def deaths(self) -> str:
        """The key of the times that a process died with it."""
        return f"{_PREFIX}deaths:{self.batch.owner}:{self.batch.id}:{self.what}"


class Claims:
    """One connection's view. Every method raises SuperlinkError ``redis_unavailable`` when Redis does not answer."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=ANSWER_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        self._renew = self._redis.register_script(_RENEW)
        self._take = self._redis.register_script(_TAKE)
        self._drop = self._redis.register_script(_DROP)
        self._postpone = self._redis.register_script(_POSTPONE)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def lead(self, token: str) -> bool:
        """Whether the keeper called ``token`` is the one that looks after the batches, for the next seconds."""
        with redis_failures():
            return bool(self._renew([KEEPER_KEY], [token, KEEPER_S]))

    def stop_leading(self, token: str) -> None:
        """Let another keeper begin at once."""
        with redis_failures():
            self._drop([KEEPER_KEY], [token])

    def wait_for_news(self, timeout_s: float) -> None:
        """Return when something has happened, or time is up."""
        with redis_failures():
            self._redis.blpop([WAKE_KEY], timeout_s)
            self._redis.delete(WAKE_KEY)

    def wake(self) -> None:
        """Let the keeper look at once. Where Redis is away, it does so by itself."""
        try:
            with redis_failures():
                self._redis.rpush(WAKE_KEY, b"")
                self._redis.expire(WAKE_KEY, 60)
        except SuperlinkError:
            return

    def reserve(self, step: Step) -> bool:
        """Claim a step that is about to be published. False: it is somebody's."""
        with redis_failures():
            return bool(self._redis.set(step.claim, _QUEUED, nx=True, ex=QUEUED_S))

    def unreserve(self, step: Step) -> None:
        """The publication failed."""
        with redis_failures():
            self._drop([step.claim], [_QUEUED])

    def look_at(self, steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
        """Those of ``steps`` that are nobody's, and those whose time has not come."""
        if not steps:
            return [], []
        with redis_failures():
            held = dict(zip(steps, self._redis.mget([step.claim for step in steps]), strict=True))
        return (
            [step for step, holder in held.items() if holder is None],
            [step for step, holder in held.items() if holder == _WAITING],
        )

    def stop_shards(self, batch: BatchName) -> None:
        """Let whoever works on shards of the batch keep what they have, and stop."""
        with redis_failures():
            self._redis.set(_stop_key(batch), b"1", ex=3600)

    def note_worker(self, name: str, slots: int) -> None:
        """A worker consumes, with so many processes."""
        with redis_failures():
            # By the clock that all have.
            now = self._now()
            self._redis.zadd(WORKERS_KEY, {f"{name}|{slots}": now + WORKER_S})
            self._redis.zremrangebyscore(WORKERS_KEY, "-inf", now)

    def forget_worker(self, name: str, slots: int) -> None:
        """A worker stops."""
        with redis_failures():
            self._redis.zrem(WORKERS_KEY, f"{name}|{slots}")

    def slots(self) -> int:
        """Processes of all workers."""
        with redis_failures():
            members = cast(list[bytes], self._redis.zrangebyscore(WORKERS_KEY, self._now(), "+inf"))
        return sum(int(member.rpartition(b"|")[2]) for member in members)

    def _now(self) -> int:
        """Seconds, by the clock of Redis."""
        return int(self._redis.time()[0])

    def waiting_messages(self) -> int:
        """Messages that no worker has taken."""
        names = [QUEUE, *(f"{QUEUE}\x06\x16{step}" for step in PRIORITY_STEPS[1:])]
        with redis_failures():
            return sum(self._redis.llen(f"{KEY_PREFIX}{name}") for name in names)

    @contextmanager
    def claimed(self, step: Step) -> Iterator[Claim | None]:
        """The claim of a step while it is done; None where it is somebody else's."""
        token = secrets.token_hex(8)
        with redis_failures():
            taken = self._take([step.claim], [token, RUNNING_S])
        if not taken:
            yield None
            return
        claim = Claim(self, step, token)
        try:
            yield claim
        finally:
            claim.end()

    def count_death(self, step: Step) -> int:
        """Count a beginning; ``forget_deaths`` takes it back, unless the process dies. Returns the count."""
        with redis_failures(), self._redis.pipeline() as pipeline:
            pipeline.incr(step.deaths)
            pipeline.expire(step.deaths, _DEATHS_S)
            return int(pipeline.execute()[0])

    def forget_deaths(self, step: Step) -> None:
        """The step got on, or failed in an orderly way."""
        with redis_failures():
            self._redis.delete(step.deaths)

    def renew(self, step: Step, token: str) -> bool:
        """Whether the claim of a step is still, or again, the one called ``token``."""
        with redis_failures():
            return bool(self._renew([step.claim], [token, RUNNING_S]))

    def drop(self, step: Step, token: str, wait_s: int) -> None:
        """Give a claim back; the step is nobody's after ``wait_s``."""
        with redis_failures():
            if wait_s > 0:
                self._postpone([step.claim], [token, wait_s])
            else:
                self._drop([step.claim], [token])

    def is_to_stop(self, batch: BatchName) -> bool:
        """Whether ``stop_shards`` was said."""
        with redis_failures():
            return bool(self._redis.exists(_stop_key(batch)))

    def leave_ticket(self, owner: str) -> str:
        """A ticket for requests in the name of an API key."""
        ticket = fresh_ticket()
        self.keep_ticket(ticket, owner)
        return ticket

    def keep_ticket(self, ticket: str, owner: str) -> None:
        """Let a ticket hold some more."""
        with redis_failures():
            self._redis.set(ticket_key(ticket), owner, ex=60)


class Claim:
    """Held by this process, and renewed in a thread until it ends."""

    def __init__(self, claims: Claims, step: Step, token: str) -> None:
        self.step = step
        self._claims = claims
        self._token = token
        self._wait_s = 0
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="claim", daemon=True)
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """Whether somebody else has the step now: nothing may be written any more."""
        return self._lost.is_set()

    @property
    def is_stopped(self) -> bool:
        """Whether the batch has ended: what was answered may be kept, and nothing more is asked."""
        return self._stopped.is_set()

    def is_held(self) -> bool:
        """Asks Redis, before something is written. Raises SuperlinkError ``redis_unavailable``."""
        if not self._claims.renew(self.step, self._token):
            self._lost.set()
        return not self.is_lost

    def postpone(self, wait_s: float) -> None:
        """When it ends, nobody does the step for so long."""
        self._wait_s = max(1, round(wait_s))

    def end(self) -> None:
        """Give it back. Where Redis is away, it runs out by itself."""
        self._ended.set()
        self._thread.join()
        try:
            self._claims.drop(self.step, self._token, self._wait_s)
        except SuperlinkError:
            return

    def _keep_renewing(self) -> None:
        while not self._ended.wait(RENEW_EVERY_S):
            try:
                if not self.is_held():
                    return
                if self._claims.is_to_stop(self.step.batch):
                    self._stopped.set()
            except SuperlinkError:
                # It may be back in time; before anything is written, it is asked again.
                continue


def _stop_key(batch: BatchName) -> str:
    return f"{_PREFIX}stop:{batch.owner}:{batch.id}"
