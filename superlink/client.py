"""The SDK: ask a running Superlink about images.

::

    from superlink import Client

    with Client("http://127.0.0.1:8080") as client:
        print(client.chat("scene.png", "How many dogs are there?").text)
        for found in client.detect("scene.png", ["dog", "cat"]).detections:
            print(found.phrase, found.score, found.box)
        client.generate("a cat beside a tree", seed=3).save("cat.png")

Everything that can go wrong is a ``SuperlinkError`` with ``code``, ``message``, ``service`` and ``request_id``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

import httpx

from superlink.drawing_calls import DrawingAssembler, DrawingOptions, drawing_of, edit_call, generate_call
from superlink.images import ImageInput
from superlink.rest import (
    RETRIED_STATUSES,
    AnswerAssembler,
    Call,
    ChatOptions,
    DetectOptions,
    GatewayTimeout,
    GatewayUnreachable,
    PoseOptions,
    SegmentOptions,
    answer_of,
    chat_call,
    detections_of,
    find_call,
    problem_of,
    readiness_of,
    request_id_of,
    retry_delay_s,
)
from superlink.results import Answer, AnswerEvent, DetectionAnswer, DrawingAnswer, Readiness

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "SUPERLINK_URL"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_RETRIES = 3
# For the gateway's own "out of time" to arrive.
TIMEOUT_MARGIN_S = 2.0


OnProgress = Callable[[int, int], None]
Event = TypeVar("Event", covariant=True)


class Assembler(Protocol[Event]):
    """Turns the bytes of an event stream into events."""

    def feed(self, received: bytes) -> Iterator[Event]:
        """Take more of the stream, cut anywhere."""


class _Settings:
    """What both clients are made of."""

    def __init__(self, url: str | None, timeout_s: float, max_retries: int, headers: Mapping[str, str] | None) -> None:
        self.url = (url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        self.timeout_s = timeout_s
        self.max_retries = max_retries
        self.headers = dict(headers or {})

    def connection(self) -> dict[str, Any]:
        """Arguments of the httpx client. It waits a little longer than the gateway, whose answer says more."""
        return {"base_url": self.url, "timeout": self.timeout_s + TIMEOUT_MARGIN_S, "headers": self.headers}

    def failure(self, error: httpx.HTTPError) -> GatewayTimeout | GatewayUnreachable:
        """A broken connection as the SDK's own error."""
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return GatewayTimeout(self.timeout_s)
        return GatewayUnreachable(self.url, str(error) or type(error).__name__)

    def cut_off(self) -> GatewayUnreachable:
        """A stream that ended before it was complete."""
        return GatewayUnreachable(self.url, "the connection closed before the answer was complete")


def _keywords(call: Call) -> dict[str, Any]:
    """``call`` as httpx takes it."""
    return {
        "method": call.method,
        "url": call.path,
        "headers": call.headers,
        "json": call.json,
        "data": call.form,
        "files": call.files,
    }


class Client:
    """A synchronous client. Safe to share between threads; close it, or use it as a context manager."""

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_RETRIES,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``url`` None: the environment's SUPERLINK_URL, else http://127.0.0.1:8080.

        Requests that meet a full queue or a service that is away (429, 503) are repeated up to ``max_retries`` times,
        after the time that the gateway names.
        """
        self._settings = _Settings(url, timeout_s, max_retries, headers)
        self._http = httpx.Client(**self._settings.connection())

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self._settings.url

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @overload
    def chat(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str,
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> Answer: ...

    @overload
    def chat(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str,
        *,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> Iterator[AnswerEvent]: ...

    def chat(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str,
        *,
        stream: bool = False,
        **options: Unpack[ChatOptions],
    ) -> Answer | Iterator[AnswerEvent]:
        """Ask about an image (or several, or none).

        ``options`` are those of ``ChatOptions``. With ``stream=True`` events come as they happen; the last is
        ``Finished`` with the whole answer. A tool that fails is an entry of ``Answer.errors``, not an exception.
        """
        call = chat_call(image, prompt, stream=stream, timeout_s=self._settings.timeout_s, options=options)
        return self._stream(call, AnswerAssembler) if stream else answer_of(self._send(call))

    def detect(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[DetectOptions],
    ) -> DetectionAnswer:
        """Look for known categories, or for one phrase ("the leftmost dog"), without free text."""
        call = find_call("/v1/detect", image, categories, phrase, timeout_s=self._settings.timeout_s, options=options)
        return detections_of(self._send(call))

    def segment(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[SegmentOptions],
    ) -> DetectionAnswer:
        """As ``detect``, with a mask for everything that is found."""
        call = find_call("/v1/segment", image, categories, phrase, timeout_s=self._settings.timeout_s, options=options)
        return detections_of(self._send(call))

    def generate(
        self, prompt: str, *, on_progress: OnProgress | None = None, **options: Unpack[DrawingOptions]
    ) -> DrawingAnswer:
        """Draw what ``prompt`` says. ``on_progress`` is called with the steps that are done and their number."""
        stream = on_progress is not None
        call = generate_call(prompt, stream=stream, timeout_s=self._settings.timeout_s, options=options)
        return self._draw(call, on_progress)

    def edit(
        self,
        image: ImageInput,
        prompt: str,
        *,
        mask: ImageInput | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[DrawingOptions],
    ) -> DrawingAnswer:
        """Change in ``image`` what ``prompt`` says; what is transparent in ``mask`` is what it is about."""
        stream = on_progress is not None
        call = edit_call(image, prompt, mask, stream=stream, timeout_s=self._settings.timeout_s, options=options)
        return self._draw(call, on_progress)

    def pose(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[PoseOptions],
    ) -> DetectionAnswer:
        """As ``detect``, with the keypoints of everything that is found."""
        call = find_call("/v1/pose", image, categories, phrase, timeout_s=self._settings.timeout_s, options=options)
        return detections_of(self._send(call))

    def ready(self) -> Readiness:
        """Whether the gateway and every service behind it is ready. Raises GatewayUnreachable."""
        try:
            return readiness_of(self._http.get("/readyz"))
        except httpx.HTTPError as error:
            raise self._settings.failure(error) from error

    def _send(self, call: Call) -> httpx.Response:
        response = self._open(call, stream=False)
        if not response.is_success:
            raise problem_of(response)
        return response

    def _draw(self, call: Call, on_progress: OnProgress | None) -> DrawingAnswer:
        if on_progress is None:
            return drawing_of(self._send(call))
        for event in self._stream(call, DrawingAssembler):
            if isinstance(event, DrawingAnswer):
                return event
            on_progress(event.done, event.total)
        raise self._settings.cut_off()

    def _stream(self, call: Call, make_assembler: Callable[[str], Assembler[Event]]) -> Iterator[Event]:
        response = self._open(call, stream=True)
        try:
            if not response.is_success:
                response.read()
                raise problem_of(response)
            assembler = make_assembler(request_id_of(response))
            for received in response.iter_bytes():
                yield from assembler.feed(received)
        except httpx.HTTPError as error:
            raise self._settings.failure(error) from error
        finally:
            response.close()

    def _open(self, call: Call, stream: bool) -> httpx.Response:
        """Send, and send again while the gateway says "not now"."""
        deadline = time.monotonic() + self._settings.timeout_s
        attempt = 0
        while True:
            try:
                response = self._http.send(self._http.build_request(**_keywords(call)), stream=stream)
            except httpx.HTTPError as error:
                raise self._settings.failure(error) from error
            delay = retry_delay_s(response, attempt)
            final = attempt >= self._settings.max_retries or time.monotonic() + delay > deadline
            if response.status_code not in RETRIED_STATUSES or final:
                return response
            response.close()
            time.sleep(delay)
            attempt += 1


class AsyncClient:
    """The same client for asyncio. Use it within one event loop; close it, or use it as a context manager."""

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_RETRIES,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """As ``Client``."""
        self._settings = _Settings(url, timeout_s, max_retries, headers)
        self._http = httpx.AsyncClient(**self._settings.connection())

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self._settings.url

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def chat(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str,
        **options: Unpack[ChatOptions],
    ) -> Answer:
        """As ``Client.chat``; ``stream`` is its streaming form."""
        call = chat_call(image, prompt, stream=False, timeout_s=self._settings.timeout_s, options=options)
        return answer_of(await self._send(call))

    async def stream(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str,
        **options: Unpack[ChatOptions],
    ) -> AsyncIterator[AnswerEvent]:
        """As ``Client.chat(stream=True)``: ``async for event in client.stream(image, prompt)``."""
        call = chat_call(image, prompt, stream=True, timeout_s=self._settings.timeout_s, options=options)
        async with aclosing(self._stream(call, AnswerAssembler)) as events:
            async for event in events:
                yield event

    async def detect(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[DetectOptions],
    ) -> DetectionAnswer:
        """As ``Client.detect``."""
        call = find_call("/v1/detect", image, categories, phrase, timeout_s=self._settings.timeout_s, options=options)
        return detections_of(await self._send(call))

    async def segment(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[SegmentOptions],
    ) -> DetectionAnswer:
        """As ``Client.segment``."""
        call = find_call("/v1/segment", image, categories, phrase, timeout_s=self._settings.timeout_s, options=options)
        return detections_of(await self._send(call))

    async def generate(
        self, prompt: str, *, on_progress: OnProgress | None = None, **options: Unpack[DrawingOptions]
    ) -> DrawingAnswer:
        """As ``Client.generate``."""
        stream = on_progress is not None
        call = generate_call(prompt, stream=stream, timeout_s=self._settings.timeout_s, options=options)
        return await self._draw(call, on_progress)

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
        call = edit_call(image, prompt, mask, stream=stream, timeout_s=self._settings.timeout_s, options=options)
        return await self._draw(call, on_progress)

    async def pose(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[PoseOptions],
    ) -> DetectionAnswer:
        """As ``Client.pose``."""
        call = find_call("/v1/pose", image, categories, phrase, timeout_s=self._settings.timeout_s, options=options)
        return detections_of(await self._send(call))

    async def ready(self) -> Readiness:
        """As ``Client.ready``."""
        try:
            return readiness_of(await self._http.get("/readyz"))
        except httpx.HTTPError as error:
            raise self._settings.failure(error) from error

    async def _send(self, call: Call) -> httpx.Response:
        response = await self._open(call, stream=False)
        if not response.is_success:
            raise problem_of(response)
        return response

    async def _draw(self, call: Call, on_progress: OnProgress | None) -> DrawingAnswer:
        if on_progress is None:
            return drawing_of(await self._send(call))
        async with aclosing(self._stream(call, DrawingAssembler)) as events:
            async for event in events:
                if isinstance(event, DrawingAnswer):
                    return event
                on_progress(event.done, event.total)
        raise self._settings.cut_off()

    async def _stream(
        self, call: Call, make_assembler: Callable[[str], Assembler[Event]]
    ) -> AsyncGenerator[Event, None]:
        response = await self._open(call, stream=True)
        try:
            if not response.is_success:
                await response.aread()
                raise problem_of(response)
            assembler = make_assembler(request_id_of(response))
            async for received in response.aiter_bytes():
                for event in assembler.feed(received):
                    yield event
        except httpx.HTTPError as error:
            raise self._settings.failure(error) from error
        finally:
            await response.aclose()

    async def _open(self, call: Call, stream: bool) -> httpx.Response:
        deadline = time.monotonic() + self._settings.timeout_s
        attempt = 0
        while True:
            try:
                response = await self._http.send(self._http.build_request(**_keywords(call)), stream=stream)
            except httpx.HTTPError as error:
                raise self._settings.failure(error) from error
            delay = retry_delay_s(response, attempt)
            final = attempt >= self._settings.max_retries or time.monotonic() + delay > deadline
            if response.status_code not in RETRIED_STATUSES or final:
                return response
            await response.aclose()
            await asyncio.sleep(delay)
            attempt += 1
