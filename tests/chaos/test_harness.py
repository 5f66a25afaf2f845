"""Whether the tools of chaos would see what they look for."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.chaos.killed_services import Kill
from tests.chaos.load import Fate, Outcome
from tests.chaos.process_figures import MIB
from tests.chaos.questions import Essence, Found, all_questions, same
from tests.chaos.soak import NOISE_BYTES_PER_MINUTE, trend_of
from tests.chaos.tcp_proxy import WHOLE, Fault, TcpProxy, proxy_to

pytestmark = pytest.mark.chaos


@asynccontextmanager
async def echo_behind_proxy() -> AsyncIterator[TcpProxy]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1024):
            writer.write(piece)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with proxy_to(f"{host}:{port}") as proxy:
        yield proxy
    server.close()


async def connect(proxy: TcpProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def round_trip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    began = time.monotonic()
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    return time.monotonic() - began


async def test_latency_is_added_each_way_and_ends_with_the_fault() -> None:
    async with echo_behind_proxy() as proxy:
        connection = await connect(proxy)
        assert await round_trip(*connection) < 0.1
        proxy.set(Fault(latency_s=0.2))
        assert await round_trip(*connection) >= 0.4
        proxy.set(Fault(latency_s=60))
        late = asyncio.create_task(round_trip(*connection))
        await asyncio.sleep(0.1)
        assert not late.done()
        proxy.set(WHOLE)
        assert await late < 2
        connection[1].close()


async def test_a_reset_ends_the_connections_there_are_and_new_ones() -> None:
    async with echo_behind_proxy() as proxy:
        connection = await connect(proxy)
        await round_trip(*connection)
        proxy.set(Fault(reset=True))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await round_trip(*connection)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await round_trip(*await connect(proxy))
        proxy.set(WHOLE)
        await round_trip(*await connect(proxy))


async def test_nothing_comes_out_of_a_black_hole_until_it_closes() -> None:
    async with echo_behind_proxy() as proxy:
        connection = await connect(proxy)
        await round_trip(*connection)
        proxy.set(Fault(blackhole=True))
        swallowed = asyncio.create_task(round_trip(*connection))
        await asyncio.sleep(0.3)
        assert not swallowed.done()
        proxy.set(WHOLE)
        await swallowed
        connection[1].close()


def test_a_leak_is_seen_and_noise_is_none() -> None:
    chance = random.Random(1)  # noqa: S311 (no secret)
    minutes = [second / 30 for second in range(450)]
    noise = [200 * MIB + chance.gauss(0, 3 * MIB) for _ in minutes]
    leak = [value + 2 * MIB * minute for minute, value in zip(minutes, noise, strict=True)]
    assert trend_of(list(zip(minutes, noise, strict=True))).is_flat(NOISE_BYTES_PER_MINUTE)
    assert not trend_of(list(zip(minutes, leak, strict=True))).is_flat(NOISE_BYTES_PER_MINUTE)


def test_a_wrong_answer_is_told_from_one_that_was_rounded_otherwise() -> None:
    dog = Found("dog", (10.0, 20.0, 30.0, 40.0), 0.95, False, 0)
    known = Essence("A dog.", {"detection": (dog,)}, (), frozenset())
    rounded = Essence(
        "A dog.", {"detection": (replace(dog, box=(10.4, 20.0, 30.0, 40.2), score=0.94),)}, (), frozenset()
    )
    assert same(known, rounded)
    assert same(known, Essence("A dog.", {}, (), frozenset({"detection"})))
    for wrong in (
        Essence("A cat.", known.found, (), frozenset()),
        Essence("A dog.", {"detection": ()}, (), frozenset()),
        Essence("A dog.", {"detection": (replace(dog, box=(90.0, 20.0, 30.0, 40.0)),)}, (), frozenset()),
        Essence("A dog.", {"detection": (replace(dog, phrase="cat"),)}, (), frozenset()),
        # A part that is missing without a word.
        Essence("A dog.", {}, (), frozenset()),
    ):
        assert not same(known, wrong)


def test_a_kill_explains_only_what_needed_the_service_and_only_while_it_was_away() -> None:
    questions = {question.name: question for question in all_questions()}
    right = Outcome(questions["segment"], Fate.RIGHT, 11.0, 11.1, 200)
    refused = Outcome(questions["detect"], Fate.REFUSED, 11.0, 11.1, 503, "unavailable", frozenset({"detection"}))
    explained = Kill("detection", 10.0, 14.0, (right, refused), 2.0)
    assert explained.stray() == []
    assert explained.row().holds
    for stray in (
        replace(refused, question=questions["segment"]),
        replace(refused, services=frozenset({"segmentation"})),
        replace(refused, status=500),
        replace(refused, sent=1.0, ended=1.1),
        replace(refused, fate=Fate.BROKEN),
        replace(refused, fate=Fate.LOST),
        replace(refused, fate=Fate.WRONG),
    ):
        assert Kill("detection", 10.0, 14.0, (right, stray), 2.0).stray() == [stray]
    late = Kill("detection", 10.0, 14.0, (right, replace(refused, sent=16.5, ended=16.6)), 2.0)
    assert late.whole_after_s == 2.5
    assert not late.row().holds
