"""Floods are refused at the door, at little cost, and no more of them than has to be."""

from __future__ import annotations

import asyncio
import socket

import grpc
import httpx
import pytest
from live_gateway import LiveGateway

from gateway.load_shedding import Allowance
from gateway.server import bind
from superlink.errors import SuperlinkError
from superlink.profile import GatewaySettings

pytestmark = pytest.mark.faults

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


def fill(allowance: Allowance) -> int:
    """Enter until there is no room; how many are running."""
    while allowance.enter():
        pass
    return allowance.running


def test_a_refusal_from_behind_leaves_less_room_and_success_gives_it_back() -> None:
    allowance = Allowance()
    assert fill(allowance) == Allowance.FIRST
    allowance.leave(began=1.0, refused=True, now=2.0)
    lowered = allowance.limit
    assert lowered < Allowance.FIRST
    # Those that began before say nothing new.
    allowance.leave(began=1.5, refused=True, now=2.1)
    assert allowance.limit == lowered
    now = 3.0
    while allowance.limit < lowered + 3:
        fill(allowance)
        allowance.leave(began=now, refused=False, now=now)
        now += 0.01
    assert now < 10


def test_the_room_does_not_grow_while_nobody_needs_it_and_never_goes_away() -> None:
    allowance = Allowance()
    for number in range(1000):
        assert allowance.enter()
        allowance.leave(began=float(number), refused=False, now=number + 0.5)
    assert allowance.limit == Allowance.FIRST
    for number in range(1000, 2000):
        assert allowance.enter()
        allowance.leave(began=float(number), refused=True, now=number + 0.5)
    assert allowance.limit == Allowance.LEAST


async def test_beyond_the_room_requests_are_refused_before_their_body_is_there(gateway: LiveGateway) -> None:
    held = [await begin_request(gateway) for _ in range(Allowance.FIRST)]
    reader, writer = await begin_request(gateway)
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
    assert b" 429 " in head
    assert b"retry-after: 1" in head.lower()
    assert b'"overloaded"' in await reader.read(1024)
    assert (await gateway.http.get("/readyz")).status_code == 200
    # Another path has room of its own.
    assert (await gateway.http.post("/v1/detect", json={})).status_code == 400
    for _, each in (*held, (reader, writer)):
        each.close()
    for _ in range(100):
        response = await gateway.http.post("/v1/chat/completions", json=CHAT)
        if response.status_code != 429:
            break
        await asyncio.sleep(0.05)
    assert response.status_code == 200


async def test_a_refusal_at_the_door_is_a_problem_like_any_other_and_is_counted(gateway: LiveGateway) -> None:
    held = [await begin_request(gateway) for _ in range(Allowance.FIRST)]
    response = await gateway.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine-1"})
    unnamed = await gateway.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "not fit for a log"})
    metrics = (await gateway.http.get("/metrics")).text
    for _, each in held:
        each.close()

    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == problem.pop("request_id") == "mine-1"
    assert problem.pop("detail") == problem.pop("message")
    assert problem == {
        "type": "urn:superlink:problem:overloaded",
        "title": "Overloaded",
        "status": 429,
        "code": "overloaded",
        "service": "gateway",
        "hop": "client>gateway",
        "retryable": True,
        "retry_after_ms": 1000,
    }
    assert unnamed.json()["request_id"] == unnamed.headers["x-request-id"] != "not fit for a log"
    assert 'superlink_gateway_refusals_total{code="overloaded"} 2.0' in metrics
    refused = 'superlink_gateway_requests_total{method="POST",path="/v1/chat/completions",status="429"} 2.0'
    assert refused in metrics


async def begin_request(gateway: LiveGateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """One whose body does not come."""
    address = httpx.URL(gateway.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n")
    # It has arrived when one that was sent later is answered.
    await gateway.http.get("/livez")
    return reader, writer


async def test_a_refusal_from_behind_reaches_the_client_as_it_is(gateway: LiveGateway) -> None:
    full = SuperlinkError("queue_full", "Full.", status=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=1500)
    gateway.workers.mllm.rounds = [[full]]
    for _ in range(3):
        response = await gateway.http.post("/v1/chat/completions", json=CHAT)
        assert (response.status_code, response.json()["code"]) == (429, "queue_full")
        assert response.headers["retry-after"] == "2"


async def test_a_message_too_large_takes_no_room_from_others(gateway: LiveGateway) -> None:
    code = "message_too_large"
    error = SuperlinkError(code, "Too large.", status=grpc.StatusCode.RESOURCE_EXHAUSTED, retryable=False)
    gateway.workers.mllm.rounds = [[error]]
    assert (await gateway.http.post("/v1/chat/completions", json=CHAT)).json()["code"] == code
    held = [await begin_request(gateway) for _ in range(Allowance.FIRST - 1)]
    assert (await gateway.http.post("/v1/chat/completions", json=CHAT)).json()["code"] == code
    for _, each in held:
        each.close()


async def test_answers_are_sent_at_once() -> None:
    """With Nagle's algorithm every answer but the first of a connection came 40 ms late."""
    delays: list[int] = []

    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        delays.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = bind(GatewaySettings(port=1).model_copy(update={"port": 0}))
    async with await asyncio.start_server(look, sock=listener):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        assert await reader.read() == b""
        writer.close()
    assert delays == [1]
