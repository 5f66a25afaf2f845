"""The last step of a batch: its results become two files of its owner."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime

import grpc

from orchestrator.batches.lines import READ_BYTES
from orchestrator.batches.rows import OUTPUT, error_row
from orchestrator.batches.shards import Tools, custom_id_in, numbered_lines
from superlink.artifacts import ID_PREFIX as FILE_PREFIX
from superlink.artifacts import ArtifactWriter
from superlink.batch_documents import Ending, EndReason, Order, Outcome, Plan, ShardRecord
from superlink.batch_store import ID_PREFIX, BatchName
from superlink.errors import SuperlinkError

logger = logging.getLogger(__name__)

PURPOSE = "batch_output"
# Records that are read ahead.
_AHEAD = 64


def assemble(order: Order, plan: Plan, ending: Ending, tools: Tools) -> None:
    """Write the files and the outcome; nothing happens where there is one.

    Lines that were not answered have a row that says so. The files have ids that follow from the batch's, so that a
    second attempt replaces what a first one left. Raises SuperlinkError where a store does not answer.
    """
    name = BatchName(order.owner, order.id)
    if tools.batches.read(name, Outcome) is not None:
        return
    with ExitStack() as stack:
        output = stack.enter_context(_ResultFile(order, "output", tools))
        errors = stack.enter_context(_ResultFile(order, "errors", tools))
        for shard, record in _records(name, plan, tools):
            for row in _rows(order, plan, ending, shard, record, tools):
                (output if row.startswith(OUTPUT) else errors).write(row[1:])
        outcome = Outcome(
            status=ending.reason,
            ended_at=datetime.now(UTC),
            completed=output.rows,
            failed=errors.rows,
            output_file_id=output.commit(),
            error_file_id=errors.commit(),
        )
    tools.batches.write(name, outcome)
    logger.info(
        "batch over",
        extra={"batch": order.id, "status": outcome.status, "completed": outcome.completed, "failed": outcome.failed},
    )


def _records(name: BatchName, plan: Plan, tools: Tools) -> Iterator[tuple[int, ShardRecord]]:
    with ThreadPoolExecutor(_AHEAD) as readers:
        for start in range(0, plan.shards, _AHEAD):
            shards = range(start, min(start + _AHEAD, plan.shards))
            yield from zip(
                shards, readers.map(lambda shard: tools.batches.read_record(name, shard), shards), strict=True
            )


def _rows(order: Order, plan: Plan, ending: Ending, shard: int, record: ShardRecord, tools: Tools) -> Iterator[bytes]:
    name = BatchName(order.owner, order.id)
    for piece in record.pieces:
        with tools.batches.open_piece(name, piece) as rows:
            # Row by row: none is larger than an answer of the gateway.
            yield from rows
    if record.is_done:
        return
    cut, _ = tools.batches.read_cut(name, plan, shard)
    for number, line in numbered_lines(order, cut, tools, frozenset(record.answered)):
        yield error_row(order.id, number, custom_id_in(line), _not_answered(ending.reason))


def _not_answered(reason: EndReason) -> SuperlinkError:
    if reason == "expired":
        message = "The batch's completion window was over before this line was answered."
        return SuperlinkError("batch_expired", message, status=grpc.StatusCode.DEADLINE_EXCEEDED)
    message = "The batch was cancelled before this line was answered."
    return SuperlinkError("batch_cancelled", message, status=grpc.StatusCode.CANCELLED)


class _ResultFile:
    """One of the files of the results; there is none where it has no rows."""

    def __init__(self, order: Order, what: str, tools: Tools) -> None:
        self._order = order
        self._what = what
        self._artifacts = tools.artifacts
        self._writer: ArtifactWriter | None = None
        self._unwritten = bytearray()
        self.rows = 0

    def __enter__(self) -> _ResultFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.discard()

    def write(self, row: bytes) -> None:
        """Add a row."""
        self.rows += 1
        self._unwritten += row
        if len(self._unwritten) >= READ_BYTES:
            self._flush()

    def commit(self) -> str | None:
        """Let the file be found; its id."""
        if not self.rows:
            return None
        writer = self._flush()
        name = f"{self._order.id}_{self._what}.jsonl"
        return writer.commit(name, PURPOSE, self._order.keep_results_s).id

    def _flush(self) -> ArtifactWriter:
        if self._writer is None:
            self._writer = self._artifacts.create_output(self._order.owner, self._file_id())
        self._writer.write(bytes(self._unwritten))
        self._unwritten.clear()
        return self._writer

    def _file_id(self) -> str:
        """Sorts where the batch does, and cannot be guessed by who does not know the batch's."""
        made_at = self._order.id.removeprefix(ID_PREFIX)[:12]
        return f"{FILE_PREFIX}{made_at}{hashlib.sha256(f'{self._order.id}:{self._what}'.encode()).hexdigest()[:16]}"
