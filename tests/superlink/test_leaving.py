"""Who stops waiting closes the connection, so that the gateway cancels the work."""

from __future__ import annotations

import asyncio

import pytest

from gateway.chat_schema import Delta
from gateway.drawing_schema import DrawingProgress
from superlink import AsyncClient, Client
from superlink.results import TextDelta
from tests.superlink.conftest import Reply, ScriptedGateway
from tests.superlink.gateway_replies import chunk, png

# Long before the server gives up on its own.
SOON_S = 5.0


def begun(document: str) -> Reply:
    """A stream that says one thing and then nothing more."""
    return Reply(200, f"data: {document}\n\n".encode(), {"content-type": "text/event-stream"}, silent_after="body")


def test_a_stream_that_is_left_closes_its_connection(gateway: ScriptedGateway) -> None:
    gateway.answer(begun(chunk(Delta(content="Here is"))))
    with Client(gateway.url) as client:
        with client.chat(png(), "Where?", stream=True) as events:
            for event in events:
                assert event == TextDelta("Here is")
                assert not gateway.left.is_set()
                break
        assert gateway.left.wait(SOON_S)


def test_a_stream_that_is_closed_says_no_more(gateway: ScriptedGateway) -> None:
    gateway.answer(begun(chunk(Delta(content="Here is"))))
    with Client(gateway.url) as client:
        events = client.chat(png(), "Where?", stream=True)
        next(events)
        events.close()
        assert gateway.left.wait(SOON_S)
        assert list(events) == []


def test_an_exception_in_a_progress_callback_closes_the_connection(gateway: ScriptedGateway) -> None:
    gateway.answer(begun(DrawingProgress(done=1, total=2).model_dump_json()))

    def refuse(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with Client(gateway.url) as client:
        with pytest.raises(KeyboardInterrupt):
            client.generate("a cat", on_progress=refuse)
        assert gateway.left.wait(SOON_S)


async def test_an_asynchronous_stream_that_is_left_closes_its_connection(gateway: ScriptedGateway) -> None:
    gateway.answer(begun(chunk(Delta(content="Here is"))))
    async with AsyncClient(gateway.url) as client:
        async with client.chat(png(), "Where?", stream=True) as events:
            async for event in events:
                assert event == TextDelta("Here is")
                break
        assert await asyncio.to_thread(gateway.left.wait, SOON_S)


@pytest.mark.parametrize("silent_after", ["request", "body"])
async def test_a_cancelled_call_closes_its_connection(gateway: ScriptedGateway, silent_after: str) -> None:
    gateway.answer(Reply(200, b'{"categories": [', silent_after=silent_after))
    async with AsyncClient(gateway.url) as client:
        call = asyncio.create_task(client.detect(png(), ["dog"]))
        assert await asyncio.to_thread(gateway.asked.wait, SOON_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        # The client itself is still open.
        assert await asyncio.to_thread(gateway.left.wait, SOON_S)


async def test_a_cancelled_stream_closes_its_connection(gateway: ScriptedGateway) -> None:
    gateway.answer(begun(DrawingProgress(done=1, total=2).model_dump_json()))
    async with AsyncClient(gateway.url) as client:
        progressed = asyncio.Event()
        drawing = asyncio.create_task(client.generate("a cat", on_progress=lambda done, total: progressed.set()))
        await asyncio.wait_for(progressed.wait(), SOON_S)
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing
        assert await asyncio.to_thread(gateway.left.wait, SOON_S)


async def test_a_timeout_around_a_call_cancels_it(gateway: ScriptedGateway) -> None:
    gateway.answer(Reply(silent_after="request"))
    async with AsyncClient(gateway.url) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.chat(png(), "Where?")
        assert await asyncio.to_thread(gateway.left.wait, SOON_S)
