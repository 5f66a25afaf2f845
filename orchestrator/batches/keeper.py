"""The keeper: looks after all batches, and has done what is to be done next.

It decides by the documents in the artifact store alone, and by what is claimed in Redis, and holds nothing that another
keeper could not find out. So it may die at any time, and Redis may lose everything. One keeper leads, the others wait
for their turn. It hands out few steps at a time, from all batches in turn: a large batch does not keep a small one
waiting, and Redis holds little.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import zip_longest

from orchestrator.batches.claims import Claims, Step
from orchestrator.batches.metrics import Metrics
from orchestrator.batches.tending import TendedBatch
from superlink.batch_documents import Ending, EndReason, Outcome, Progress
from superlink.batch_store import BatchName, BatchStore
from superlink.errors import SuperlinkError
from superlink.profile import Profile

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
# Progress is for people; each writing costs the store something.
PROGRESS_EVERY_S = 1.0
# Steps that are handed out for each process, so that none has to wait for the next one.
STEPS_A_SLOT = 2
# For those who work on a batch that has been cancelled, or expired, to keep what they have.
END_GRACE_S = 15.0
FORGET_EVERY_S = 3600.0
LONGEST_PAUSE_S = 10.0

Publish = Callable[[Step], None]


class Keeper:
    """Runs in a thread of its own."""

    def __init__(
        self, profile: Profile, batches: BatchStore, claims: Claims, publish: Publish, metrics: Metrics
    ) -> None:
        """``publish`` hands a step to the workers; raises SuperlinkError where Redis does not answer."""
        self._profile = profile
        self._batches = batches
        self._claims = claims
        self._publish = publish
        self._metrics = metrics
        self._token = secrets.token_hex(8)
        self._tended: dict[BatchName, TendedBatch] = {}
        # Handed out, by somebody.
        self._out: set[Step] = set()
        # Of these, those whose time has not come.
        self._waiting: set[Step] = set()
        self._ends_at: dict[BatchName, float] = {}
        self._progress: dict[BatchName, tuple[Progress, float]] = {}
        self._forgot_at = 0.0
        # Why it cannot go on; empty while it can.
        self.trouble = ""

    def run(self, stopping: threading.Event) -> None:
        """Until ``stopping``."""
        pause_s = 0.0
        while not stopping.wait(pause_s):
            try:
                pause_s = self._look()
                if self.trouble:
                    logger.info("the keeper goes on")
                self.trouble = ""
            except SuperlinkError as error:
                pause_s = self._note_trouble(error.code, str(error.__cause__ or error), pause_s)
            except Exception as error:
                logger.exception("the keeper failed")
                pause_s = self._note_trouble("internal", type(error).__name__, pause_s)
        try:
            self._claims.stop_leading(self._token)
        except SuperlinkError:
            return

    def _note_trouble(self, code: str, reason: str, pause_s: float) -> float:
        self._metrics.failures.labels(code).inc()
        if reason != self.trouble:
            logger.error("the keeper cannot go on; nothing is lost", extra={"code": code, "reason": reason})
        self.trouble = reason
        return min(max(2 * pause_s, 0.5), LONGEST_PAUSE_S)

    def _look(self) -> float:
        """Look after everything once; returns for how long to wait."""
        if not self._claims.lead(self._token):
            self._metrics.leads.set(0)
            # What is known is out of date by the next time.
            self._tended.clear()
            self._out.clear()
            self._metrics.open.clear()
            return LOOK_EVERY_S
        self._metrics.leads.set(1)
        self._take_back()
        names = self._batches.open_names()
        for gone in self._tended.keys() - set(names):
            del self._tended[gone]
        for name in names:
            tended = self._tended.setdefault(name, TendedBatch(name))
            tended.refresh(self._batches)
            self._move_on(tended)
        self._hand_out()
        self._show(names)
        if time.monotonic() - self._forgot_at > FORGET_EVERY_S:
            self._forget_old()
        self._claims.wait_for_news(LOOK_EVERY_S)
        return 0.0

    def _take_back(self) -> None:
        """Steps that are nobody's any more are done, or have to be done again."""
        free, waiting = self._claims.look_at(list(self._out))
        self._waiting = set(waiting)
        for step in free:
            self._out.discard(step)
            tended = self._tended.get(step.batch)
            if tended is None or not step.is_shard:
                continue
            shard = int(step.what)
            record = self._batches.read_record(step.batch, shard)
            if not record.is_done:
                self._metrics.lost.labels("shard").inc()
            before = tended.progress
            tended.note(shard, record)
            after = tended.progress
            self._metrics.lines.labels("completed").inc(max(0, after.completed - before.completed))
            self._metrics.lines.labels("failed").inc(max(0, after.failed - before.failed))

    def _move_on(self, tended: TendedBatch) -> None:
        """Write what follows from what is known."""
        name, batch = tended.name, tended.batch
        if batch is None:
            # Its order was never written.
            self._batches.close(name)
        elif batch.outcome is not None:
            if not tended.wants_webhook:
                self._close(tended, batch.outcome)
        elif batch.plan is not None and batch.ending is None:
            if batch.plan.problems:
                self._batches.write(name, Outcome(status="failed", ended_at=datetime.now(UTC), completed=0, failed=0))
            elif tended.is_all_done:
                self._end(tended, "completed")
            elif batch.cancel is not None:
                self._end_early(tended, "cancelled")
            elif datetime.now(UTC) >= batch.order.expires_at:
                self._end_early(tended, "expired")
            else:
                self._write_progress(tended)

    def _close(self, tended: TendedBatch, outcome: Outcome) -> None:
        self._metrics.ended.labels(outcome.status).inc()
        if tended.delivery is not None:
            self._metrics.webhooks.labels("delivered" if tended.delivery.delivered_at else "given_up").inc()
        self._batches.close(tended.name)
        for kept in (self._ends_at, self._progress):
            kept.pop(tended.name, None)

    def _end_early(self, tended: TendedBatch, reason: EndReason) -> None:
        """Once those who work on it have kept what they have, or took too long."""
        ends_at = self._ends_at.setdefault(tended.name, time.monotonic() + END_GRACE_S)
        self._claims.stop_shards(tended.name)
        if time.monotonic() > ends_at or not any(step.batch == tended.name for step in self._out - self._waiting):
            self._end(tended, reason)

    def _end(self, tended: TendedBatch, reason: EndReason) -> None:
        self._write_progress(tended, is_last=True)
        self._batches.write(tended.name, Ending(reason=reason, decided_at=datetime.now(UTC)))
        tended.refresh(self._batches)

    def _write_progress(self, tended: TendedBatch, *, is_last: bool = False) -> None:
        written, at = self._progress.get(tended.name, (Progress(), 0.0))
        progress = tended.progress
        if progress != written and (is_last or time.monotonic() - at > PROGRESS_EVERY_S):
            self._batches.write(tended.name, progress)
            self._progress[tended.name] = (progress, time.monotonic())

    def _hand_out(self) -> None:
        """Publish what comes next, from all batches in turn, until enough is handed out."""
        most = STEPS_A_SLOT * max(self._claims.slots(), self._profile.batches.concurrency) + len(self._waiting)
        # What a limit or a service lets nobody do now is not tried with the next shard.
        held_back = {step.batch for step in self._waiting}
        for steps in zip_longest(*(tended.next_steps() for tended in self._tended.values())):
            for tended, what in zip(self._tended.values(), steps, strict=True):
                step = Step(tended.name, what) if what is not None else None
                if step is None or step in self._out or step.is_shard and tended.name in held_back:
                    continue
                if len(self._out) >= most:
                    return
                if self._claims.reserve(step):
                    self._publish_reserved(step)
                self._out.add(step)

    def _publish_reserved(self, step: Step) -> None:
        try:
            self._publish(step)
        except SuperlinkError:
            self._claims.unreserve(step)
            raise
        self._metrics.published.labels("shard" if step.is_shard else step.what).inc()

    def _show(self, names: list[BatchName]) -> None:
        self._metrics.open.clear()
        for name in names:
            tended = self._tended.get(name)
            if tended is not None and tended.batch is not None:
                self._metrics.open.labels(tended.batch.status).inc()
        self._metrics.waiting.set(self._claims.waiting_messages())

    def _forget_old(self) -> None:
        """Delete batches whose results have been deleted as well."""
        keep = timedelta(seconds=self._profile.artifacts.keep_s)
        forgotten = self._batches.forget_ended_before(datetime.now(UTC) - keep)
        self._forgot_at = time.monotonic()
        logger.info("batches forgotten", extra={"forgotten": forgotten})
