"""How much an API key may ask for: requests a minute, requests a day, and requests at the same time.

The counts are in Redis, so that they hold for all gateways of a deployment together, by the clock of Redis. A request
that runs holds a *slot*: a lease that its gateway renews. Of a gateway that dies the slots are free when their leases
have run out.
"""

from __future__ import annotations

import secrets
from functools import partial

import grpc
from redis.asyncio import Redis

from gateway.leases import LEASE_MS, Lease
from superlink.errors import SuperlinkError
from superlink.profile import KeyLimits
from superlink.redis_connection import redis_failures

# Nobody knows when a running request ends.
BUSY_RETRY_AFTER_MS = 1000

# KEYS: requests of the last minute (sorted by time), requests of the day (a number), slots (sorted by end of lease).
# ARGV: limits a minute, a day, at the same time; id of the request; milliseconds of a lease.
# Returns the limit that is reached, or "admitted", and the milliseconds until it is worth trying again.
_ADMIT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local per_minute, per_day, concurrent = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if per_day > 0 and tonumber(redis.call('GET', KEYS[2]) or '0') >= per_day then
  return {'day', redis.call('PTTL', KEYS[2])}
end
if per_minute > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 60000)
  -- What is still to come was counted before the clock was set back.
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')
  local excess = redis.call('ZCARD', KEYS[1]) - per_minute
  if excess >= 0 then
    return {'minute', redis.call('ZRANGE', KEYS[1], excess, excess, 'WITHSCORES')[2] + 60000 - now}
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '(' .. now + ARGV[5], '+inf')
if concurrent > 0 and redis.call('ZCARD', KEYS[3]) >= concurrent then
  return {'concurrent', 0}
end
if per_minute > 0 then
  redis.call('ZADD', KEYS[1], now, ARGV[4])
  redis.call('PEXPIRE', KEYS[1], 60000)
end
if redis.call('INCR', KEYS[2]) == 1 then
  redis.call('EXPIREAT', KEYS[2], (math.floor(time[1] / 86400) + 1) * 86400)
end
redis.call('ZADD', KEYS[3], now + ARGV[5], ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
return {'admitted', 0}
"""

# KEYS: slots. ARGV: id of the request; milliseconds of a lease.
_RENEW = """
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""


class Limits:
    """The counts of all keys."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._admit = redis.register_script(_ADMIT)
        self._renew = redis.register_script(_RENEW)

    async def admit(self, key_id: str, limits: KeyLimits) -> Lease:
        """Count a request of the key; the lease is its slot.

        Raises SuperlinkError RESOURCE_EXHAUSTED with code ``quota_exceeded``, ``rate_limited`` or
        ``too_many_concurrent_requests``, and then nothing is counted; ``redis_unavailable``.
        """
        request = secrets.token_hex(8)
        prefix = f"superlink:limits:{key_id}"
        keys = [f"{prefix}:minute", f"{prefix}:day", f"{prefix}:slots"]
        arguments = (limits.requests_per_minute, limits.requests_per_day, limits.concurrent_requests)
        with redis_failures():
            word, wait_ms = await self._admit(keys, [*arguments, request, LEASE_MS])
        match word:
            case b"day":
                text = f"The API key has used up its {limits.requests_per_day:,} requests of this day (UTC)."
                raise _too_many("quota_exceeded", text, wait_ms)
            case b"minute":
                text = f"The API key may send {limits.requests_per_minute:,} requests a minute. Wait a little."
                raise _too_many("rate_limited", text, wait_ms)
            case b"concurrent":
                text = f"The API key may have {limits.concurrent_requests:,} requests running. Wait for one to end."
                raise _too_many("too_many_concurrent_requests", text, BUSY_RETRY_AFTER_MS)
        slot = (keys[2], request)
        return Lease(partial(self._renew_slot, *slot), partial(self._free_slot, *slot))

    async def _renew_slot(self, slots: str, request: str) -> None:
        with redis_failures():
            await self._renew([slots], [request, LEASE_MS])

    async def _free_slot(self, slots: str, request: str) -> None:
        with redis_failures():
            await self._redis.zrem(slots, request)


def _too_many(code: str, message: str, wait_ms: int) -> SuperlinkError:
    return SuperlinkError(
        code, message, status=grpc.StatusCode.RESOURCE_EXHAUSTED, service="gateway", retry_after_ms=max(1, wait_ms)
    )
