"""What the gateway and those who work on batches tell each other through Redis."""

from __future__ import annotations

from redis.asyncio import Redis

from superlink.errors import SuperlinkError
from superlink.redis_connection import redis_failures

# A list: whoever changed a batch lets its keeper know at once; the keeper looks by itself a little later.
WAKE_KEY = "superlink:batches:wake"
# Sorted by the time, of the clock of Redis, until which they are believed to work.
WORKERS_KEY = "superlink:batches:workers"
# Nobody is woken by what is older.
_LASTS_S = 60


async def wake_keeper(redis: Redis) -> None:
    """Nothing happens where Redis is away: the keeper finds what is new in the artifact store."""
    try:
        with redis_failures():
            await redis.rpush(WAKE_KEY, b"")
            await redis.expire(WAKE_KEY, _LASTS_S)
    except SuperlinkError:
        return


async def count_workers(redis: Redis) -> int:
    """How many workers take steps. Raises SuperlinkError ``redis_unavailable``."""
    with redis_failures():
        now, _ = await redis.time()
        return int(await redis.zcount(WORKERS_KEY, now, "+inf"))
