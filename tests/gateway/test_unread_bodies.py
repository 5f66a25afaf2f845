"""Answers that come before the body was read reach the client whole, however the connection goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
from live_gateway import LiveGateway, live_gateway

from gateway.load_shedding import Allowance

pytestmark = pytest.mark.faults

# More than the buffers of both ends hold: the client is still sending when it is refused.
BODY = bytes(12 * 1024 * 1024)
# What uvicorn, and httpx as well, allow an idle connection by default.
USUAL_KEEP_ALIVE_S = 5.0


async def send(url: str, path: str, version: str, *fields: str, body: bytes = BODY) -> bytes:
    """What comes back until the server closes the connection, which it has only a few seconds for."""
    address = httpx.URL(url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    head = "".join(f"{field}\r\n" for field in ("host: test", f"content-length: {len(BODY)}", *fields))
    writer.write(f"POST {path} {version}\r\n{head}\r\n".encode() + body)
    async with asyncio.timeout(5):
        await writer.drain()
        answer = await reader.read()
    writer.close()
    return answer


@contextlib.asynccontextmanager
async def no_room(gateway: LiveGateway) -> AsyncIterator[None]:
    """All that may be under way at one path is."""
    address = httpx.URL(gateway.url)
    held = [await asyncio.open_connection(address.host, address.port) for _ in range(Allowance.FIRST)]
    for _, writer in held:
        writer.write(b"POST /v1/detect HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n")
    # They have arrived when one that was sent later is answered.
    await gateway.http.get("/livez")
    yield
    for _, writer in held:
        writer.close()


CLOSING = [("HTTP/1.0",), ("HTTP/1.1", "connection: close")]


@pytest.mark.parametrize("closing", CLOSING, ids=lambda closing: closing[0])
async def test_a_refusal_is_not_lost_when_the_connection_closes(gateway: LiveGateway, closing: tuple[str, ...]) -> None:
    async with no_room(gateway):
        for _ in range(10):
            answer = await send(gateway.url, "/v1/detect", *closing)
            assert b" 429 " in answer.partition(b"\r\n")[0]
            assert b'"overloaded"' in answer


@pytest.mark.parametrize("closing", CLOSING, ids=lambda closing: closing[0])
async def test_a_body_that_is_too_large_is_refused_by_name(closing: tuple[str, ...]) -> None:
    async with live_gateway(max_body_bytes=1024 * 1024) as gateway:
        for _ in range(10):
            assert b'"body_too_large"' in await send(gateway.url, "/v1/detect", *closing)


async def test_a_client_that_stops_sending_is_not_waited_for(gateway: LiveGateway) -> None:
    async with no_room(gateway):
        assert b'"overloaded"' in await send(gateway.url, "/v1/detect", *CLOSING[1], body=BODY[:1000])


async def test_a_real_client_reads_its_refusal_on_kept_and_closed_connections(gateway: LiveGateway) -> None:
    async with no_room(gateway):
        for fields in ({}, {"connection": "close"}):
            for _ in range(10):
                response = await gateway.http.post("/v1/detect", content=BODY, headers=fields)
                assert (response.status_code, response.json()["code"]) == (429, "overloaded")


async def test_an_idle_connection_is_kept_for_longer_than_clients_keep_theirs(gateway: LiveGateway) -> None:
    """A request that a client sends just when the server closes its idle connection is reset."""
    limits = httpx.Limits(keepalive_expiry=60)
    async with httpx.AsyncClient(base_url=gateway.url, limits=limits, trust_env=False) as http:
        first = await http.get("/livez")
        await asyncio.sleep(USUAL_KEEP_ALIVE_S + 1)
        second = await http.get("/livez")
    assert first.extensions["network_stream"] is second.extensions["network_stream"]
