"""Requests that carry an ``Idempotency-Key``: done once, and answered as often as they are asked.

The first request with a key reserves it and, where it succeeds, leaves its answer in Redis. A repetition gets that
answer. What fails leaves nothing, so that it can be tried again with the same key.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from dataclasses import dataclass
from functools import partial

import grpc
from redis.asyncio import Redis
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.bodies import body_again, read_body, timeout_of
from gateway.calls import owner_of
from gateway.files import FILES
from gateway.leases import LEASE_MS, Lease
from gateway.problems import Problem, ProblemResponse
from superlink.errors import SuperlinkError, invalid_argument
from superlink.profile import GatewaySettings
from superlink.redis_connection import redis_failures

logger = logging.getLogger(__name__)

HEADER = "idempotency-key"
# On an answer that was given before.
REPLAYED_HEADER = "idempotency-replayed"
# "false" on an answer that a repetition will not get.
KEPT_HEADER = "idempotency-kept"
# Bodies that are never held in memory, and so never known again.
STREAMED = frozenset({FILES})

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_BOUNDARY = re.compile(r'boundary="?([^";,]+)"?', re.IGNORECASE)

# KEYS: the entry. ARGV: fingerprint of the request; token of this attempt; milliseconds of a lease.
# Returns "reserved", "other" (a different request has the key), "running", or "answered" with what was answered.
_RESERVE = """
local entry = redis.call('HMGET', KEYS[1], 'fingerprint', 'token', 'status', 'type', 'body')
if not entry[1] then
  redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'token', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {'reserved'}
end
if entry[1] ~= ARGV[1] then return {'other'} end
if entry[3] then return {'answered', entry[3], entry[4], entry[5]} end
if entry[2] == ARGV[2] then return {'reserved'} end
return {'running'}
"""
# Both leave an entry alone that has an answer or is another attempt's.
# KEYS: the entry. ARGV: token of this attempt; milliseconds of a lease.
_RENEW = """
local entry = redis.call('HMGET', KEYS[1], 'token', 'status')
if entry[1] == ARGV[1] and not entry[2] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
"""
# KEYS: the entry. ARGV: token of this attempt.
_GIVE_BACK = """
local entry = redis.call('HMGET', KEYS[1], 'token', 'status')
if entry[1] == ARGV[1] and not entry[2] then redis.call('DEL', KEYS[1]) end
"""
# KEYS: the entry. ARGV: token; fingerprint; status, media type and body of the answer; seconds to keep it.
_KEEP = """
local token = redis.call('HGET', KEYS[1], 'token')
if token and token ~= ARGV[1] then return end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'fingerprint', ARGV[2],
           'status', ARGV[3], 'type', ARGV[4], 'body', ARGV[5])
redis.call('EXPIRE', KEYS[1], ARGV[6])
"""


@dataclass(frozen=True)
class Answer:
    """What is kept of a response."""

    status: int
    media_type: str
    body: bytes


class Reservation(Lease):
    """The right to answer the first request with a key."""

    def __init__(self, answers: KeptAnswers, entry: str, fingerprint: str, token: str) -> None:
        super().__init__(partial(answers.renew, entry, token), partial(answers.give_back, entry, token))
        self._keep = partial(answers.keep, entry, fingerprint, token)

    async def keep(self, answer: Answer) -> bool:
        """Keep the answer for repetitions; False where Redis is away or full, and they will not be known for such."""
        try:
            await self._keep(answer)
        except SuperlinkError:
            logger.warning("an answer was not kept")
            return False
        return True


class KeptAnswers:
    """The entries of all idempotency keys. Every method raises SuperlinkError when Redis does not answer."""

    def __init__(self, redis: Redis, keep_s: int) -> None:
        self._keep_s = keep_s
        self._reserve = redis.register_script(_RESERVE)
        self._renew = redis.register_script(_RENEW)
        self._give_back = redis.register_script(_GIVE_BACK)
        self._keep = redis.register_script(_KEEP)

    async def reserve(self, owner: str, key: str, fingerprint: str) -> Reservation | Answer:
        """The reservation of ``key``, or what was answered before.

        Raises SuperlinkError ``idempotency_key_reused`` where another request of the same owner has the key, and
        ``request_in_progress`` where the same one has not been answered yet.
        """
        entry = f"superlink:idempotency:{owner}:{hashlib.sha256(key.encode()).hexdigest()}"
        token = secrets.token_hex(8)
        with redis_failures():
            word, *answer = await self._reserve([entry], [fingerprint, token, LEASE_MS])
        match word:
            case b"other":
                raise invalid_argument(
                    "idempotency_key_reused",
                    "This Idempotency-Key was sent with a different request. Every request needs a key of its own.",
                )
            case b"running":
                raise SuperlinkError(
                    "request_in_progress",
                    "The request with this Idempotency-Key is still being answered. Ask again shortly.",
                    status=grpc.StatusCode.ABORTED,
                    retry_after_ms=1000,
                )
            case b"answered":
                status, media_type, body = answer
                return Answer(int(status), media_type.decode(), body)
        return Reservation(self, entry, fingerprint, token)

    async def renew(self, entry: str, token: str) -> None:
        """Start the lease of a reservation anew."""
        with redis_failures():
            await self._renew([entry], [token, LEASE_MS])

    async def give_back(self, entry: str, token: str) -> None:
        """Forget a reservation that has no answer."""
        with redis_failures():
            await self._give_back([entry], [token])

    async def keep(self, entry: str, fingerprint: str, token: str, answer: Answer) -> None:
        """Put the answer in the place of its reservation."""
        with redis_failures():
            kept: list[str | int | bytes] = [answer.status, answer.media_type, answer.body]
            await self._keep([entry], [token, fingerprint, *kept, self._keep_s])


class Idempotency:
    """Answers repetitions of POST requests that were answered already."""

    def __init__(self, app: ASGIApp, answers: KeptAnswers, settings: GatewaySettings) -> None:
        self._app = app
        self._answers = answers
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        key = Headers(scope=scope).get(HEADER) if scope["type"] == "http" and scope["method"] == "POST" else None
        if key is None or scope["path"] in STREAMED:
            await self._app(scope, receive, send)
            return
        try:
            if not _KEY.fullmatch(key):
                raise invalid_argument(
                    "invalid_idempotency_key", "An Idempotency-Key has 1 to 255 visible ASCII characters and no spaces."
                )
            request = Request(scope, receive)
            body = await read_body(request, timeout_of(request, self._settings.request_timeout_s))
            owner = owner_of(request)
            found = await self._answers.reserve(owner, key, _fingerprint(scope, body))
        except ClientDisconnect:
            return
        except SuperlinkError as error:
            await ProblemResponse(Problem.from_error(error, scope["state"]["request_id"]))(scope, receive, send)
            return
        if isinstance(found, Answer):
            headers = {"content-type": found.media_type, REPLAYED_HEADER: "true"}
            await Response(found.body, found.status, headers)(scope, receive, send)
            return
        try:
            await self._app(scope, body_again(body, receive), self._keeping(found, send))
        finally:
            await found.release()

    def _keeping(self, reservation: Reservation, send: Send) -> Send:
        """``send`` that keeps a successful answer before the client has it, or says that it has not.

        Not streams: they come in pieces.
        """
        start: Message | None = None

        async def keep_and_send(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start is not None:
                body = message.get("body", b"")
                whole = not message.get("more_body", False) and len(body) <= self._settings.idempotency_max_answer_bytes
                if 200 <= start["status"] < 300:
                    media_type = Headers(raw=start["headers"]).get("content-type", "")
                    kept = whole and await reservation.keep(Answer(start["status"], media_type, body))
                    if not kept:
                        MutableHeaders(raw=start["headers"])[KEPT_HEADER] = "false"
                await send(start)
                start = None
            await send(message)

        return keep_and_send


def _fingerprint(scope: Scope, body: bytes) -> str:
    """A digest of what makes a request the same one: its method, address, media type and body."""
    media_type = Headers(scope=scope).get("content-type", "")
    boundary = _BOUNDARY.search(media_type)
    if boundary is not None:
        # Clients make up another one for every attempt.
        body = body.replace(boundary[1].encode("latin-1"), b"")
        media_type = media_type.replace(boundary[1], "")
    digest = hashlib.sha256()
    for part in (scope["method"], scope["path"], scope["query_string"], media_type, body):
        encoded = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(encoded))
        digest.update(encoded)
    return digest.hexdigest()
