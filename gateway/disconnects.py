"""Clients that leave: whatever was done for them is cancelled, down to the workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.metrics import Metrics

Result = TypeVar("Result")


class ClientLeft(Exception):
    """The client closed the connection; nobody reads an answer."""


async def unless_client_leaves(request: Request, work: Awaitable[Result]) -> Result:
    """The result of ``work``, which is cancelled when the client leaves first (raises ClientLeft then).

    The request's body must have been read.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_until_disconnect(request.receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        await _cancel(working, watching)


class EventStream(Response):
    """Server-sent events from an async generator, which is closed as soon as the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], farewell: bytes, metrics: Metrics) -> None:
        """``events`` yields complete events; ``farewell`` ends a stream that the server cuts off."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        # Its length is not known.
        del self.headers["content-length"]
        self._events = events
        self._farewell = farewell
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the events while watching for the client's end of the connection."""
        writing = asyncio.ensure_future(self._write(send))
        watching = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await asyncio.wait({writing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
            else:
                self._metrics.disconnects.labels(getattr(scope.get("route"), "path", "unknown")).inc()
        except asyncio.CancelledError:
            # The process ends and has waited long enough; a stream that just breaks off would look complete to some.
            await _cancel(writing)
            await send({"type": "http.response.body", "body": self._farewell, "more_body": False})
            raise
        finally:
            await _cancel(writing, watching)
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
