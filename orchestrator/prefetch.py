"""Images sent ahead: decoders encode them while the MLLM still writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager

from orchestrator.catalogue import ToolRoute
from orchestrator.metrics import Metrics
from orchestrator.workers import Decoder
from superlink.errors import SuperlinkError
from superlink.v1 import decoder_pb2, types_pb2


class Prefetcher:
    """Asks decoders for nothing but the features of an image, which the tool call then finds in their caches."""

    def __init__(self, decoders: Mapping[str, Decoder], metrics: Metrics, enabled: bool) -> None:
        """``decoders`` by their names in the profile."""
        self._decoders = decoders
        self._metrics = metrics
        self._enabled = enabled

    @asynccontextmanager
    async def ahead(
        self, routes: Iterable[ToolRoute], image: types_pb2.Image | None, request_id: str, timeout_s: float
    ) -> AsyncIterator[None]:
        """Send ``image``, if there is one, to every decoder of ``routes`` that looks for things by link embeddings.

        Whatever is still under way when the block ends is cancelled. Failures are counted and otherwise ignored: the
        tool call will meet them.
        """
        prefetches = {
            route.decoder: decoder_pb2.DecodeRequest(
                request_id=request_id,
                image=image,
                adapter_version=route.adapter_version,
                input_mode=decoder_pb2.INPUT_MODE_LINK,
            )
            for route in routes
            if self._enabled
            and image is not None
            and route.input_mode == decoder_pb2.INPUT_MODE_LINK
            and not route.makes_images
        }
        tasks = [
            asyncio.create_task(self._send(decoder, prefetch, timeout_s)) for decoder, prefetch in prefetches.items()
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, decoder: str, prefetch: decoder_pb2.DecodeRequest, timeout_s: float) -> None:
        code = "overtaken"
        try:
            async with aclosing(self._decoders[decoder].decode(prefetch, timeout_s)) as events:
                async for _ in events:
                    pass
            code = "ok"
        except SuperlinkError as error:
            code = error.code
        finally:
            self._metrics.prefetches.labels(decoder, code).inc()
