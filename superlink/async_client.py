"""The SDK for asyncio.

::

    from superlink import AsyncClient

    async with AsyncClient("http://127.0.0.1:8080") as client:
        answer = await client.chat("scene.png", "How many dogs are there?")
        async with client.chat("scene.png", "What is here?", stream=True) as events:
            async for event in events:
                print(event)

A call whose task is cancelled, and a stream that is left, close their connection, and the gateway cancels the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Unpack, overload

from superlink.batches import AsyncBatches
from superlink.client import OnProgress
from superlink.connection import AsyncConnection
from superlink.connection_settings import DEFAULT_RETRIES, DEFAULT_TIMEOUT_S, connection_settings
from superlink.drawing_calls import DrawingAssembler, DrawingOptions, drawing_of, edit_call, generate_call
from superlink.images import ImageInput
from superlink.plain_answers import AskOptions, PlainAnswer, answer_call, plain_answer_of
from superlink.rest import (
    AnswerAssembler,
    Call,
    ChatOptions,
    DetectOptions,
    PoseOptions,
    SegmentOptions,
    answer_of,
    chat_call,
    detections_of,
    find_call,
)
from superlink.results import Answer, AnswerEvent, DetectionAnswer, DrawingAnswer, Readiness
from superlink.streams import AsyncAnswerStream


class AsyncClient:
    """The same client for asyncio. Use it within one event loop; close it, or use it as a context manager.

    Requests are made in a thread, because encoding large pictures would hold up the event loop.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_RETRIES,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """As ``Client``."""
        settings = connection_settings(url, api_key, timeout_s, max_retries, headers)
        self._url = settings.url
        self._connection = AsyncConnection(settings)
        self._batches = AsyncBatches(self._connection)

    @property
    def batches(self) -> AsyncBatches:
        """As ``Client.batches``."""
        return self._batches

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self._url

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    @overload
    def chat(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str | None,
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> Coroutine[Any, Any, Answer]: ...

    @overload
    def chat(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str | None,
        *,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> AsyncAnswerStream: ...

    def chat(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str | None,
        *,
        stream: bool = False,
        **options: Unpack[ChatOptions],
    ) -> Coroutine[Any, Any, Answer] | AsyncAnswerStream:
        """As ``Client.chat``: ``await client.chat(…)``, or ``async for event in client.chat(…, stream=True)``."""
        if stream:
            return AsyncAnswerStream(self._events(image, prompt, options))
        return self._answer(image, prompt, options)

    async def answer(
        self, image: ImageInput | Sequence[ImageInput] | None, prompt: str, **options: Unpack[AskOptions]
    ) -> PlainAnswer:
        """As ``Client.answer``."""
        call = await asyncio.to_thread(answer_call, image, prompt, options)
        return await self._connection.send(call, plain_answer_of)

    async def detect(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[DetectOptions],
    ) -> DetectionAnswer:
        """As ``Client.detect``."""
        call = await asyncio.to_thread(find_call, "/v1/detect", image, categories, phrase, options)
        return await self._connection.send(call, detections_of)

    async def segment(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[SegmentOptions],
    ) -> DetectionAnswer:
        """As ``Client.segment``."""
        call = await asyncio.to_thread(find_call, "/v1/segment", image, categories, phrase, options)
        return await self._connection.send(call, detections_of)

    async def pose(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[PoseOptions],
    ) -> DetectionAnswer:
        """As ``Client.pose``."""
        call = await asyncio.to_thread(find_call, "/v1/pose", image, categories, phrase, options)
        return await self._connection.send(call, detections_of)

    async def generate(
        self, prompt: str, *, on_progress: OnProgress | None = None, **options: Unpack[DrawingOptions]
    ) -> DrawingAnswer:
        """As ``Client.generate``."""
        return await self._draw(generate_call(prompt, options, stream=on_progress is not None), on_progress)

    async def edit(
        self,
        image: ImageInput,
        prompt: str,
        *,
        mask: ImageInput | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[DrawingOptions],
    ) -> DrawingAnswer:
        """As ``Client.edit``."""
        stream = on_progress is not None
        call = await asyncio.to_thread(edit_call, image, prompt, mask, options, stream=stream)
        return await self._draw(call, on_progress)

    async def ready(self) -> Readiness:
        """As ``Client.ready``."""
        return await self._connection.readiness()

    async def _answer(
        self, image: ImageInput | Sequence[ImageInput] | None, prompt: str | None, options: ChatOptions
    ) -> Answer:
        call = await asyncio.to_thread(chat_call, image, prompt, options, stream=False)
        return await self._connection.send(call, answer_of)

    async def _events(
        self, image: ImageInput | Sequence[ImageInput] | None, prompt: str | None, options: ChatOptions
    ) -> AsyncGenerator[AnswerEvent, None]:
        call = await asyncio.to_thread(chat_call, image, prompt, options, stream=True)
        async with aclosing(self._connection.stream(call, AnswerAssembler)) as events:
            async for event in events:
                yield event

    async def _draw(self, call: Call, on_progress: OnProgress | None) -> DrawingAnswer:
        if on_progress is None:
            return await self._connection.send(call, drawing_of)
        drawn: list[DrawingAnswer] = []
        async with aclosing(self._connection.stream(call, DrawingAssembler)) as events:
            async for event in events:
                if isinstance(event, DrawingAnswer):
                    drawn.append(event)
                else:
                    on_progress(event.done, event.total)
        return drawn[-1]
