"""Progress of a request that computes, from the model thread to the handler that streams it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

Value = TypeVar("Value")


class ProgressReports:
    """Make one in the event loop for each request; hand ``report`` to the model thread."""

    def __init__(self) -> None:
        # Nobody waits for the result any more. Set in the event loop, read in the model thread between two steps.
        self.abandoned = False
        self._loop = asyncio.get_running_loop()
        # None: the result is there.
        self._reports: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()

    def report(self, done: int, total: int) -> None:
        """In the model thread: ``done`` steps of ``total`` lie behind."""
        self._loop.call_soon_threadsafe(self._reports.put_nowait, (done, total))

    async def until(self, result: asyncio.Task[Value]) -> AsyncIterator[tuple[int, int]]:
        """The reports as they come, until ``result`` is there or has failed. Ending early cancels ``result``."""
        result.add_done_callback(lambda _: self._reports.put_nowait(None))
        try:
            while (report := await self._reports.get()) is not None:
                yield report
        finally:
            if not result.done():
                result.cancel()
                # The batcher must know first, or it would start the request again by itself.
                await asyncio.gather(result, return_exceptions=True)
                self.abandoned = True
