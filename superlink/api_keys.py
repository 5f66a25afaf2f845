"""API keys: how they look, how they are kept, and how one is told from a guess.

A key reads ``sl_ID_SECRET``. The id is public: logs, lists and limits name the key by it. Only a digest of the key is
kept. It needs no salt and no slow hash, because the secret is 192 random bits: nobody can try them all.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime

import grpc
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

from superlink.batch_tickets import is_ticket, ticket_key
from superlink.errors import SuperlinkError
from superlink.profile import KeyLimits
from superlink.redis_connection import redis_failures

_KEY = re.compile(r"sl_(?P<id>[0-9a-f]{16})_[0-9a-f]{48}")
# A hash: records by key id.
_RECORDS = "superlink:keys"
# Compared with where there is no record, so that a guessed id takes as long as a wrong secret.
_NO_DIGEST = hashlib.sha256(b"").hexdigest()


class KeyRecord(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(frozen=True)

    id: str
    # What the owner calls it; several keys may have the same name.
    name: str
    sha256: str
    created_at: datetime
    revoked_at: datetime | None = None
    # Its own limits; None: the profile's.
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    requests_per_day: int | None = None

    def limits(self, defaults: KeyLimits) -> KeyLimits:
        """The limits that hold for this key."""
        own = {name: getattr(self, name) for name in KeyLimits.model_fields}
        return defaults.model_copy(update={name: value for name, value in own.items() if value is not None})


class ApiKeys:
    """The keys of a deployment. Every method raises SuperlinkError ``redis_unavailable`` when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, name: str, limits: dict[str, int]) -> tuple[str, KeyRecord]:
        """A new key, which is not kept, and its record. ``limits``: those of its own, by the names of ``KeyLimits``."""
        key_id = secrets.token_hex(8)
        key = f"sl_{key_id}_{secrets.token_hex(24)}"
        record = KeyRecord.model_validate(
            {"id": key_id, "name": name, "sha256": _digest(key), "created_at": datetime.now(UTC), **limits}
        )
        await self._write(record)
        return key, record

    async def all(self) -> list[KeyRecord]:
        """Every key, revoked ones included, the oldest first."""
        with redis_failures():
            records = await self._redis.hvals(_RECORDS)
        return sorted(map(KeyRecord.model_validate_json, records), key=lambda record: record.created_at)

    async def revoke(self, key_id: str) -> KeyRecord:
        """End a key; requests that are being answered finish. Raises SuperlinkError ``unknown_api_key``."""
        record = await self._read(key_id)
        if record is None:
            raise SuperlinkError(
                "unknown_api_key",
                f"There is no key {key_id!r}. `superlink keys list` shows the ids.",
                status=grpc.StatusCode.NOT_FOUND,
            )
        if record.revoked_at is None:
            record = record.model_copy(update={"revoked_at": datetime.now(UTC)})
            await self._write(record)
        return record

    async def verify(self, key: str) -> KeyRecord:
        """The record of ``key``, or of the key that a batch's ticket stands for.

        Raises SuperlinkError ``invalid_api_key`` or ``revoked_api_key``, UNAUTHENTICATED.
        """
        record = await self._owner_of_ticket(key) if is_ticket(key) else await self._owner_of_key(key)
        if record is None:
            raise _unauthenticated("invalid_api_key", "The API key is not known here. Check it, or ask for a new one.")
        if record.revoked_at is not None:
            raise _unauthenticated("revoked_api_key", f"The API key {record.id} was revoked. Ask for a new one.")
        return record

    async def _owner_of_key(self, key: str) -> KeyRecord | None:
        shape = _KEY.fullmatch(key)
        record = await self._read(shape["id"]) if shape else None
        expected = record.sha256 if record is not None else _NO_DIGEST
        return record if hmac.compare_digest(_digest(key), expected) else None

    async def _owner_of_ticket(self, ticket: str) -> KeyRecord | None:
        with redis_failures():
            key_id = await self._redis.get(ticket_key(ticket))
        return await self._read(key_id.decode()) if isinstance(key_id, bytes) else None

    async def _read(self, key_id: str) -> KeyRecord | None:
        with redis_failures():
            record = await self._redis.hget(_RECORDS, key_id)
        return None if record is None else KeyRecord.model_validate_json(record)

    async def _write(self, record: KeyRecord) -> None:
        with redis_failures():
            await self._redis.hset(_RECORDS, record.id, record.model_dump_json(exclude_none=True))


def key_of(authorization: str) -> str:
    """The key in an ``Authorization`` header. Raises SuperlinkError ``missing_api_key``, UNAUTHENTICATED."""
    scheme, _, key = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise _unauthenticated(
            "missing_api_key", "This deployment needs an API key. Send the header 'Authorization: Bearer sl_…'."
        )
    return key.strip()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _unauthenticated(code: str, message: str) -> SuperlinkError:
    return SuperlinkError(code, message, status=grpc.StatusCode.UNAUTHENTICATED)
