"""Many requests in one file, answered without waiting for them: ``client.batches``.

::

    with Client() as client:
        requests = {"scene-1": {"image": url, "categories": ["dog"]}, "scene-2": …}
        job = client.batches.wait(client.batches.create(requests, endpoint="/v1/detect"))
        for line in client.batches.results(job):
            print(line.custom_id, line.body or line.error)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from superlink.batch_calls import (
    BatchInput,
    LineSplitter,
    batch_call,
    batch_of,
    batches_of,
    cancel_call,
    content_call,
    create_call,
    file_of,
    list_call,
    opened_input,
    upload_call,
)
from superlink.batch_results import BatchJob, BatchPage, LineResult, line_result_of
from superlink.connection import AsyncConnection, Connection
from superlink.errors import SuperlinkError

OnBatchProgress = Callable[[BatchJob], None]
# Between two looks at a batch.
POLL_INTERVAL_S = 2.0


class Batches:
    """The batches of a client's API key."""

    def __init__(self, connection: Connection) -> None:
        """Use ``Client.batches``."""
        self._connection = connection

    def create(
        self,
        requests: BatchInput,
        *,
        endpoint: str,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        webhook_url: str | None = None,
    ) -> BatchJob:
        """Upload requests and have them answered.

        ``requests`` are bodies of ``endpoint`` by their custom_id, pairs of both, or the path of a JSONL file.
        ``completion_window``: ``"90s"``, ``"10m"``, ``"24h"``, ``"7d"``; what is not answered by then gets an error.
        """
        with opened_input(requests, endpoint) as (name, file):
            stored = self._connection.send(upload_call(name, file, "batch"), file_of)
        return self.create_from_file(
            stored.id,
            endpoint=endpoint,
            completion_window=completion_window,
            metadata=metadata,
            webhook_url=webhook_url,
        )

    def create_from_file(
        self,
        input_file_id: str,
        *,
        endpoint: str,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        webhook_url: str | None = None,
    ) -> BatchJob:
        """As ``create``, of a file that was uploaded before."""
        call = create_call(input_file_id, endpoint, completion_window, metadata, webhook_url)
        return self._connection.send(call, batch_of)

    def get(self, batch_id: str) -> BatchJob:
        """How far a batch is."""
        return self._connection.send(batch_call(batch_id), batch_of)

    def list(self, *, limit: int = 20, after: str | None = None) -> BatchPage:
        """The batches, the last one first; ``after``: the last id of the page before."""
        return self._connection.send(list_call(limit, after), batches_of)

    def cancel(self, batch_id: str) -> BatchJob:
        """Have nothing more of a batch asked. What was answered is kept."""
        return self._connection.send(cancel_call(batch_id), batch_of)

    def wait(
        self, batch: BatchJob | str, *, on_progress: OnBatchProgress | None = None, poll_s: float = POLL_INTERVAL_S
    ) -> BatchJob:
        """The batch once it is over. A gateway that is away in between is waited for."""
        batch_id = batch if isinstance(batch, str) else batch.id
        while True:
            try:
                job = self.get(batch_id)
            except SuperlinkError as error:
                if not error.retryable:
                    raise
            else:
                if on_progress is not None:
                    on_progress(job)
                if job.is_over:
                    return job
            time.sleep(poll_s)

    def results(self, batch: BatchJob) -> Iterator[LineResult]:
        """What became of the lines of a batch that is over, one at a time: answers first, then errors."""
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is None:
                continue
            splitter = LineSplitter()
            for piece in self._connection.content(content_call(file_id)):
                yield from map(line_result_of, splitter.feed(piece))

    def content(self, file_id: str) -> Iterator[bytes]:
        """The bytes of a file, piece by piece."""
        return self._connection.content(content_call(file_id))


class AsyncBatches:
    """The same for asyncio."""

    def __init__(self, connection: AsyncConnection) -> None:
        """Use ``AsyncClient.batches``."""
        self._connection = connection

    async def create(
        self,
        requests: BatchInput,
        *,
        endpoint: str,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        webhook_url: str | None = None,
    ) -> BatchJob:
        """As ``Batches.create``. The requests are written in a thread."""
        opened = opened_input(requests, endpoint)
        name, file = await asyncio.to_thread(opened.__enter__)
        try:
            stored = await self._connection.send(upload_call(name, file, "batch"), file_of)
        finally:
            await asyncio.to_thread(opened.__exit__, None, None, None)
        return await self.create_from_file(
            stored.id,
            endpoint=endpoint,
            completion_window=completion_window,
            metadata=metadata,
            webhook_url=webhook_url,
        )

    async def create_from_file(
        self,
        input_file_id: str,
        *,
        endpoint: str,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        webhook_url: str | None = None,
    ) -> BatchJob:
        """As ``Batches.create_from_file``."""
        call = create_call(input_file_id, endpoint, completion_window, metadata, webhook_url)
        return await self._connection.send(call, batch_of)

    async def get(self, batch_id: str) -> BatchJob:
        """As ``Batches.get``."""
        return await self._connection.send(batch_call(batch_id), batch_of)

    async def list(self, *, limit: int = 20, after: str | None = None) -> BatchPage:
        """As ``Batches.list``."""
        return await self._connection.send(list_call(limit, after), batches_of)

    async def cancel(self, batch_id: str) -> BatchJob:
        """As ``Batches.cancel``."""
        return await self._connection.send(cancel_call(batch_id), batch_of)

    async def wait(
        self, batch: BatchJob | str, *, on_progress: OnBatchProgress | None = None, poll_s: float = POLL_INTERVAL_S
    ) -> BatchJob:
        """As ``Batches.wait``."""
        batch_id = batch if isinstance(batch, str) else batch.id
        while True:
            try:
                job = await self.get(batch_id)
            except SuperlinkError as error:
                if not error.retryable:
                    raise
            else:
                if on_progress is not None:
                    on_progress(job)
                if job.is_over:
                    return job
            await asyncio.sleep(poll_s)

    async def results(self, batch: BatchJob) -> AsyncIterator[LineResult]:
        """As ``Batches.results``."""
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is None:
                continue
            splitter = LineSplitter()
            async for piece in self._connection.content(content_call(file_id)):
                for row in splitter.feed(piece):
                    yield line_result_of(row)

    def content(self, file_id: str) -> AsyncIterator[bytes]:
        """As ``Batches.content``."""
        return self._connection.content(content_call(file_id))
