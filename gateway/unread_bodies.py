"""Answers that are given before the request's body has been read, on connections that close after them.

A server that closes a connection while the client's bytes lie unread makes the kernel reset it, and the reset destroys
what the client has not read yet: the refusal of a large body would look like a crash. On connections that are kept
uvicorn discards the rest of the body itself.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Of a client that goes on sending although it has its answer.
MOST_DISCARDED_BYTES = 64 * 1024 * 1024
DISCARD_TIMEOUT_S = 2.0


class UnreadBodies:
    """Discards what is left of a body before the connection is closed, within bounds of size and time.

    The client has the whole answer before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] != "http" or not _closes(scope):
            await self._app(scope, receive, send)
            return
        is_read = False

        async def watched() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = not message.get("more_body", False)
            return message

        async def send_and_discard(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False) and not is_read:
                await send({**message, "more_body": True})
                await _discard(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self._app(scope, watched, send_and_discard)


def _closes(scope: Scope) -> bool:
    """Whether the client wants the connection closed after the answer, as proxies do by default."""
    return scope["http_version"] == "1.0" or any(
        name == b"connection" and b"close" in value.lower() for name, value in scope["headers"]
    )


async def _discard(receive: Receive) -> None:
    discarded = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_TIMEOUT_S):
            while discarded < MOST_DISCARDED_BYTES:
                message = await receive()
                discarded += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
