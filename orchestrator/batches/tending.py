"""A batch as the keeper sees it: what is known of its shards, and what is to be done next."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from orchestrator.batches.steps import ASSEMBLE, NOTIFY, PLAN
from superlink.batch_documents import Delivery, Progress, ShardRecord
from superlink.batch_store import Batch, BatchName, BatchStore


class TendedBatch:
    """One batch that is not over."""

    def __init__(self, name: BatchName) -> None:
        self.name = name
        self.batch: Batch | None = None
        # Of the webhook; only of a batch that is over.
        self.delivery: Delivery | None = None
        self._done = bytearray()
        # Answered and failed lines by shard, and their sums.
        self._counts: dict[int, tuple[int, int]] = {}
        self.progress = Progress()
        self._first_undone = 0
        self._has_read_records = False

    @property
    def is_all_done(self) -> bool:
        """Whether every shard is answered."""
        return self._has_read_records and next(self._undone(), None) is None

    def refresh(self, batches: BatchStore) -> None:
        """Read its documents; the records of its shards only the first time."""
        self.batch = batches.load(self.name)
        if self.batch is None or self.batch.plan is None:
            return
        if self.batch.outcome is not None:
            self.delivery = batches.read(self.name, Delivery)
        elif self.batch.ending is None and not self._has_read_records:
            self._done = bytearray(self.batch.plan.shards)
            for shard, record in batches.records(self.name):
                self.note(shard, record)
            self._has_read_records = True

    def note(self, shard: int, record: ShardRecord) -> None:
        """What has been answered of a shard."""
        completed, failed = self._counts.get(shard, (0, 0))
        self._counts[shard] = (record.completed, record.failed)
        self.progress = Progress(
            completed=self.progress.completed + record.completed - completed,
            failed=self.progress.failed + record.failed - failed,
        )
        if record.is_done and shard < len(self._done):
            self._done[shard] = True

    def next_steps(self) -> Iterator[str]:
        """What may be done now, the most urgent first; never ends early for what is being done already."""
        batch = self.batch
        if batch is None:
            return
        if batch.outcome is not None:
            if self.is_webhook_due:
                yield NOTIFY
        elif batch.plan is None:
            yield PLAN
        elif batch.ending is not None:
            yield ASSEMBLE
        elif not batch.plan.problems and batch.cancel is None and datetime.now(UTC) < batch.order.expires_at:
            yield from map(str, self._undone())

    @property
    def wants_webhook(self) -> bool:
        """Whether somebody waits for a message that has not been sent or given up."""
        batch = self.batch
        if batch is None or batch.order.webhook_url is None:
            return False
        return self.delivery is None or self.delivery.next_at is not None

    @property
    def is_webhook_due(self) -> bool:
        """Whether now is the time for it."""
        next_at = self.delivery.next_at if self.delivery is not None else None
        return self.wants_webhook and (next_at is None or next_at <= datetime.now(UTC))

    def _undone(self) -> Iterator[int]:
        while self._first_undone < len(self._done) and self._done[self._first_undone]:
            self._first_undone += 1
        place = self._first_undone
        while (place := self._done.find(0, place)) >= 0:
            yield place
            place += 1
