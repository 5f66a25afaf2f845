"""The Redis that holds API keys, their limits and the answers to requests with an idempotency key."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError

from superlink.configuration import ConfigurationError
from superlink.errors import SuperlinkError
from superlink.profile import GatewaySettings

logger = logging.getLogger(__name__)

URL_VARIABLE = "SUPERLINK_REDIS_URL"
# Requests wait for Redis, so one that hangs must show soon.
CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 3.0
MAX_CONNECTIONS = 64


def redis_url_of(settings: GatewaySettings) -> str:
    """The address of Redis: the environment's, else the profile's; empty where neither names one."""
    return os.environ.get(URL_VARIABLE, "") or settings.redis_url


def connect(url: str) -> Redis:
    """A client of the Redis at ``url``, which connects when it is first used and again whenever that is needed.

    Raises ConfigurationError for an address that is none.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=ANSWER_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=ANSWER_TIMEOUT_S,
            # Once more on a new connection, because Redis may have been restarted meanwhile. Not after a timeout: what
            # was asked may have been done.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
    except ValueError as error:
        # Without the address, which may hold a password.
        raise ConfigurationError(f"gateway.redis_url (or {URL_VARIABLE}) is no address of a Redis: {error}") from error
    return Redis.from_pool(pool)


@contextmanager
def redis_failures() -> Iterator[None]:
    """Raise SuperlinkError ``redis_unavailable`` where Redis fails."""
    try:
        yield
    except RedisError as error:
        # Not a warning: commands would print it beside what they say themselves.
        logger.info("redis failed", extra={"reason": f"{type(error).__name__}: {error}"})
        raise SuperlinkError(
            "redis_unavailable",
            f"The store of API keys and limits {_what_is_wrong(error)}, so that no request can be let in. "
            "Try again shortly.",
            status=grpc.StatusCode.UNAVAILABLE,
            service="redis",
            retry_after_ms=1000,
        ) from error


def _what_is_wrong(error: RedisError) -> str:
    """In words. Redis says so itself where it runs and cannot write."""
    if isinstance(error, OutOfMemoryError):
        return "has no memory left"
    if str(error).startswith("MISCONF"):
        return "cannot write to its disk"
    return "does not answer"
