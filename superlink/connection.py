"""How calls travel: over one pool of connections, again after a refusal, and closed as soon as nobody waits.

``Connection`` and ``AsyncConnection`` differ in how they wait and in nothing else. What is sent, when it is sent again
and what comes back is decided by ``Attempts``, ``read_response`` and ``EventReader``, which know no connection.
A connection on which an answer is still under way is closed when its reader leaves; the gateway then cancels the work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator

import httpx

from superlink.connection_settings import ConnectionSettings
from superlink.response_reader import (
    Event,
    EventReader,
    MakeAssembler,
    Parse,
    Parsed,
    read_readiness,
    read_response,
)
from superlink.rest import Call
from superlink.results import Readiness
from superlink.retries import Attempts, connection_failure

READINESS_PATH = "/readyz"
# The gateway closes a connection after five idle seconds; a request must not be sent into that moment.
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=3.0)


class Connection:
    """For threads."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._http = httpx.Client(base_url=settings.url, headers=settings.headers, limits=LIMITS)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def send(self, call: Call, parse: Parse[Parsed]) -> Parsed:
        """The answer to ``call``."""
        response = self._open(call)
        try:
            response.read()
        except httpx.HTTPError as error:
            raise connection_failure(error, self._settings) from error
        finally:
            response.close()
        return read_response(parse, call, response, self._settings)

    def stream(self, call: Call, make_assembler: MakeAssembler[Event]) -> Generator[Event, None, None]:
        """The answer's events. Sent when the first one is asked for."""
        response = self._open(call)
        try:
            reader = EventReader(make_assembler, call, response, self._settings)
            for received in response.iter_bytes():
                yield from reader.feed(received)
            reader.finish()
        except httpx.HTTPError as error:
            raise connection_failure(error, self._settings) from error
        finally:
            response.close()

    def content(self, call: Call) -> Generator[bytes, None, None]:
        """The body of the answer, piece by piece."""
        response = self._open(call)
        try:
            yield from response.iter_bytes()
        except httpx.HTTPError as error:
            raise connection_failure(error, self._settings) from error
        finally:
            response.close()

    def readiness(self) -> Readiness:
        """What the gateway says now; asked once."""
        try:
            response = self._http.get(READINESS_PATH, timeout=self._settings.timeout_s)
        except httpx.HTTPError as error:
            raise connection_failure(error, self._settings) from error
        return read_readiness(response, self._settings)

    def _open(self, call: Call) -> httpx.Response:
        """The head of a successful response, after as many attempts as it takes and may take."""
        attempts = Attempts(call, self._settings)
        while True:
            try:
                response = self._http.send(self._http.build_request(**attempts.request()), stream=True)
                if response.is_success:
                    return response
                try:
                    response.read()
                finally:
                    response.close()
                pause_s = attempts.pause_after_response(response)
            except httpx.HTTPError as error:
                pause_s = attempts.pause_after_error(error)
            time.sleep(pause_s)


class AsyncConnection:
    """For asyncio."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._http = httpx.AsyncClient(base_url=settings.url, headers=settings.headers, limits=LIMITS)

    async def close(self) -> None:
        """As ``Connection.close``."""
        await self._http.aclose()

    async def send(self, call: Call, parse: Parse[Parsed]) -> Parsed:
        """As ``Connection.send``."""
        response = await self._open(call)
        try:
            await response.aread()
        except httpx.HTTPError as error:
            raise connection_failure(error, self._settings) from error
        finally:
            await response.aclose()
        return read_response(parse, call, response, self._settings)

    async def stream(self, call: Call, make_assembler: MakeAssembler[Event]) -> AsyncGenerator[Event, None]:
        """As ``Connection.stream``."""
        response = await self._open(call)
        try:
            reader = EventReader(make_assembler, call, response, self._settings)
            async for received in response.aiter_bytes():
                for event in reader.feed(received):
                    yield event
            reader.finish()
        except httpx.HTTPError as error:
            raise connection_failure(error, self._settings) from error
        finally:
            await response.aclose()

    async def content(self, call: Call) -> AsyncGenerator[bytes, None]:
        """As ``Connection.content``."""
        response = await self._open(call)
        try:
            async for piece in response.aiter_bytes():
                yield piece
        except httpx.HTTPError as error:
            raise connection_failure(error, self._settings) from error
        finally:
            await response.aclose()

    async def readiness(self) -> Readiness:
        """As ``Connection.readiness``."""
        try:
            response = await self._http.get(READINESS_PATH, timeout=self._settings.timeout_s)
        except httpx.HTTPError as error:
            raise connection_failure(error, self._settings) from error
        return read_readiness(response, self._settings)

    async def _open(self, call: Call) -> httpx.Response:
        attempts = Attempts(call, self._settings)
        while True:
            try:
                response = await self._http.send(self._http.build_request(**attempts.request()), stream=True)
                if response.is_success:
                    return response
                try:
                    await response.aread()
                finally:
                    await response.aclose()
                pause_s = attempts.pause_after_response(response)
            except httpx.HTTPError as error:
                pause_s = attempts.pause_after_error(error)
            await asyncio.sleep(pause_s)
