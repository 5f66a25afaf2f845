"""A gateway on a loop of its own, because a browser is driven by calls that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from live_gateway import LiveGateway, live_gateway
from scripted_workers import ScriptedDeployment

Result = TypeVar("Result")


class GatewayThread:
    """Serves from entering to leaving; ``settings`` are those of ``live_gateway``."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._started: Future[LiveGateway] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        self._gateway = self._started.result(timeout=30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return self._gateway.url

    @property
    def workers(self) -> ScriptedDeployment:
        """Scripts may be set from anywhere while no request is under way."""
        return self._gateway.workers

    def release(self, event: asyncio.Event) -> None:
        """Set ``event``, for which a script waits."""
        self._loop.call_soon_threadsafe(event.set)

    def wait_for(self, event: asyncio.Event, timeout_s: float = 10) -> None:
        """Until a worker has set ``event``."""
        self._run(lambda: event.wait(), timeout_s)

    def _run(self, work: Callable[[], Any], timeout_s: float) -> None:
        async def run() -> None:
            async with asyncio.timeout(timeout_s):
                await work()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            async with live_gateway(**self._settings) as gateway:
                self._started.set_result(gateway)
                await self._stop.wait()
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            raise
