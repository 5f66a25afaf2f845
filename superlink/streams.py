"""An answer while it is written: events in the order in which they happen.

A stream is read once. Leaving its ``with`` block, or ``close``, closes the connection, and the gateway cancels what is
still being done for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType

from superlink.results import AnswerEvent


class AnswerStream(Iterator[AnswerEvent]):
    """For threads: ``with client.chat(image, prompt, stream=True) as events: …``."""

    def __init__(self, events: Generator[AnswerEvent, None, None]) -> None:
        self._events = events

    def __next__(self) -> AnswerEvent:
        return next(self._events)

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._events.close()


class AsyncAnswerStream(AsyncIterator[AnswerEvent]):
    """For asyncio: ``async with client.chat(image, prompt, stream=True) as events: …``."""

    def __init__(self, events: AsyncGenerator[AnswerEvent, None]) -> None:
        self._events = events

    async def __anext__(self) -> AnswerEvent:
        return await anext(self._events)

    async def __aenter__(self) -> AsyncAnswerStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As ``AnswerStream.close``."""
        await self._events.aclose()
