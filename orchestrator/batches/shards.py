"""A step of a batch: the lines of one shard are asked, and their rows kept piece by piece.

The record of the shard says which lines have been answered and where their rows are. It is written in one step after
the rows, and by the process that has the claim; so whoever dies here leaves a record that is right, and the next
process goes on from there.
"""

from __future__ import annotations

import asyncio
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc
import httpx

from orchestrator.batches.claims import Claim, Claims
from orchestrator.batches.line_requests import LineRequests
from orchestrator.batches.lines import OVERHEAD_BYTES, RawLine, custom_id_of, lines_of, read_request
from orchestrator.batches.rows import ERROR, OUTPUT, error_row
from superlink.artifacts import ArtifactStore
from superlink.batch_documents import Order, Plan, ShardRecord
from superlink.batch_store import BatchName, BatchStore, Cut
from superlink.errors import SuperlinkError, invalid_argument
from superlink.profile import Profile

logger = logging.getLogger(__name__)

# What was answered is kept at least so often, so that a process that dies takes no more with it.
KEEP_EVERY_S = 3.0
KEEP_EVERY_BYTES = 8 * 1024 * 1024
# After this no line is waited for whose time has not come: the next process goes on, and others have their turn.
TURN_S = 60.0
# Until a shard that got nowhere is tried again.
LONGEST_WAIT_S = 60.0
LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Tools:
    """What a process has for its steps."""

    profile: Profile
    artifacts: ArtifactStore
    batches: BatchStore
    claims: Claims
    # Where the gateway is.
    gateway_url: str
    # Whether the process is to end: what is asked may be answered, and nothing more begun.
    is_draining: Callable[[], bool]


@dataclass(frozen=True)
class ShardWork:
    """A shard, and how far it is."""

    order: Order
    shard: int
    cut: Cut
    repeated: frozenset[int]
    record: ShardRecord

    @property
    def name(self) -> BatchName:
        """Of the batch."""
        return BatchName(self.order.owner, self.order.id)


def run_shard(order: Order, plan: Plan, shard: int, claim: Claim, tools: Tools) -> None:
    """Ask what has not been answered of a shard. Raises SuperlinkError where a store does not answer."""
    name = BatchName(order.owner, order.id)
    record = tools.batches.read_record(name, shard)
    if record.is_done:
        return
    cut, repeated = tools.batches.read_cut(name, plan, shard)
    deaths = tools.claims.count_death(claim.step)
    keeping = _Keeping(ShardWork(order, shard, cut, repeated, record), claim, tools, is_careful=deaths > 1)
    lines = numbered_lines(order, cut, tools, frozenset(record.answered))
    first = next(lines, None) if deaths > tools.profile.batches.max_deliveries else None
    if first is not None:
        # After the first death lines were asked one by one, so the first one is the one that it died with.
        number, line = first
        logger.error("a line is given up", extra={"batch": order.id, "line": number, "deaths": deaths - 1})
        keeping.add(number, error_row(order.id, number, custom_id_in(line), _given_up(deaths - 1)))
        keeping.keep()
    asyncio.run(_Shard(keeping, lines, claim, tools).run())
    tools.claims.forget_deaths(claim.step)


def numbered_lines(
    order: Order, cut: Cut, tools: Tools, answered: frozenset[int]
) -> Iterator[tuple[int, RawLine | SuperlinkError]]:
    """The lines of a shard that have not been answered, with their numbers; an error where there is no reading them."""
    max_bytes = tools.profile.gateway.max_body_bytes + OVERHEAD_BYTES
    numbers = range(cut.first_line, cut.first_line + cut.lines)
    try:
        if cut.end - cut.start > max_bytes + tools.profile.batches.max_shard_bytes:
            # One line that is longer than any may be.
            lines: Iterator[RawLine] = iter([RawLine(cut.start, cut.end, None)] * cut.lines)
        else:
            record = tools.artifacts.get(order.owner, order.input_file_id)
            content = tools.artifacts.read_range(record, cut.start, cut.end)
            lines = lines_of(io.BytesIO(content), max_bytes, cut.start)
    except SuperlinkError as error:
        if error.code != "unknown_file":
            raise
        yield from ((number, error) for number in numbers if number not in answered)
        return
    yield from ((number, line) for number, line in zip(numbers, lines, strict=True) if number not in answered)


class _Keeping:
    """The rows of a shard on their way into the store."""

    def __init__(self, work: ShardWork, claim: Claim, tools: Tools, *, is_careful: bool) -> None:
        """``is_careful``: keep each row at once, because a process died here."""
        self.work = work
        self.is_careful = is_careful
        self._record = work.record
        self._claim = claim
        self._tools = tools
        self._rows: list[tuple[int, bytes]] = []
        self._kept_at = time.monotonic()
        # Rows are added in the event loop and kept in threads.
        self._lock = threading.Lock()

    @property
    def is_due(self) -> bool:
        """Whether rows are to be kept now."""
        if not self._rows:
            return False
        is_late = time.monotonic() - self._kept_at > KEEP_EVERY_S
        return self.is_careful or is_late or self._size() > KEEP_EVERY_BYTES

    @property
    def is_behind(self) -> bool:
        """Whether so many rows wait that no more may join them: the store does not take any."""
        return self._size() > 4 * KEEP_EVERY_BYTES

    def add(self, line: int, row: bytes) -> None:
        """A row, which is not kept yet."""
        self._rows.append((line, row))

    def keep(self, *, is_done: bool = False) -> None:
        """Keep the rows. Nothing happens where somebody else has the shard.

        Raises SuperlinkError where a store does not answer; the rows are then still there.
        """
        with self._lock:
            # Rows join at the end meanwhile, and stay for the next time.
            rows = self._rows.copy()
            if rows or is_done:
                self._write(rows, is_done)
            del self._rows[: len(rows)]
            self._kept_at = time.monotonic()

    def _size(self) -> int:
        """Bytes that wait. A shard has few lines."""
        return sum(len(row) for _, row in self._rows.copy())

    def _write(self, rows: Sequence[tuple[int, bytes]], is_done: bool) -> None:
        work, before = self.work, self._record
        pieces = before.pieces
        if rows:
            piece = self._tools.batches.write_piece(work.name, work.shard, [row for _, row in rows])
            pieces = (*pieces, piece)
        record = ShardRecord(
            pieces=pieces,
            answered=(*before.answered, *(line for line, _ in rows)),
            completed=before.completed + sum(row.startswith(OUTPUT) for _, row in rows),
            failed=before.failed + sum(row.startswith(ERROR) for _, row in rows),
            is_done=is_done,
        )
        if not self._claim.is_held():
            return
        self._tools.batches.write_record(work.name, work.shard, record)
        self._record = record
        if self.is_careful:
            # It got on: the deaths before were not because of the lines that are kept now.
            self._tools.claims.forget_deaths(self._claim.step)
            self._tools.claims.count_death(self._claim.step)


class _Shard:
    """Asks the lines of one shard, some at a time."""

    def __init__(
        self,
        keeping: _Keeping,
        lines: Iterator[tuple[int, RawLine | SuperlinkError]],
        claim: Claim,
        tools: Tools,
    ) -> None:
        self._keeping = keeping
        self._lines = lines
        self._claim = claim
        self._tools = tools
        self._order = keeping.work.order
        self._turn_ends = time.monotonic() + TURN_S
        # Lines whose time has not come, and when it may.
        self._unanswered = 0
        self._wait_s = 0.0
        self._was_left = False

    async def run(self) -> None:
        """Until all lines are answered, or the turn is over."""
        settings = self._tools.profile.batches
        at_a_time = 1 if self._keeping.is_careful else settings.lines_at_a_time
        ticket = await self._ticket()
        async with httpx.AsyncClient(
            base_url=self._tools.gateway_url, limits=httpx.Limits(max_connections=at_a_time), trust_env=False
        ) as http:
            requests = LineRequests(
                http,
                self._order.id,
                ticket,
                self._tools.profile.gateway.request_timeout_s,
                self._is_over,
                lambda: time.monotonic() < self._turn_ends,
            )
            asking = [asyncio.create_task(self._ask_on(requests)) for _ in range(at_a_time)]
            try:
                await self._keep_while(asking, ticket)
            finally:
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)
        if self._claim.is_lost:
            return
        await asyncio.to_thread(self._keeping.keep, is_done=not (self._unanswered or self._was_left))
        if self._unanswered and not self._was_left:
            self._claim.postpone(min(self._wait_s, LONGEST_WAIT_S))

    async def _ticket(self) -> str | None:
        if not self._tools.profile.gateway.keys.required:
            return None
        return await asyncio.to_thread(self._tools.claims.leave_ticket, self._order.owner)

    async def _keep_while(self, asking: list[asyncio.Task[None]], ticket: str | None) -> None:
        """Keep rows and the ticket while lines are asked. Raises what a line raised."""
        ticket_left = time.monotonic()
        waiting = set(asking)
        while waiting and not self._claim.is_lost:
            done, waiting = await asyncio.wait(waiting, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if self._keeping.is_due:
                await self._keep_patiently()
            if ticket is not None and time.monotonic() - ticket_left > 5:
                ticket_left = time.monotonic()
                try:
                    await asyncio.to_thread(self._tools.claims.keep_ticket, ticket, self._order.owner)
                except SuperlinkError:
                    # Without Redis no request is let in either.
                    continue

    async def _keep_patiently(self) -> None:
        """Rows that cannot be kept now are kept later, as long as they do not become many."""
        try:
            await asyncio.to_thread(self._keeping.keep)
        except SuperlinkError:
            if self._is_over() or time.monotonic() > self._turn_ends:
                raise
            await asyncio.sleep(1.0)

    async def _ask_on(self, requests: LineRequests) -> None:
        """Line after line, until none is left or no more may be begun."""
        while True:
            if self._is_over() or time.monotonic() > self._turn_ends or self._keeping.is_behind:
                if next(self._lines, None) is not None:
                    self._was_left = True
                return
            found = next(self._lines, None)
            if found is None:
                return
            number, line = found
            row = await self._answer(requests, number, line)
            if row is not None:
                self._keeping.add(number, row)
            if self._keeping.is_careful:
                await self._keep_patiently()

    async def _answer(self, requests: LineRequests, number: int, line: RawLine | SuperlinkError) -> bytes | None:
        """The row of a line; None: its time has not come."""
        try:
            if isinstance(line, SuperlinkError):
                raise line
            if line.content is None:
                limit = self._tools.profile.gateway.max_body_bytes
                raise invalid_argument("body_too_large", f"The line is longer than {limit:,} bytes. Send less.")
            request = read_request(line.content, self._order.endpoint)
            if number in self._keeping.work.repeated:
                raise invalid_argument(
                    "duplicate_custom_id",
                    f"An earlier line has the custom_id {request.custom_id[:100]!r}, too. Every line needs its own.",
                )
        except SuperlinkError as error:
            return error_row(self._order.id, number, custom_id_in(line), error)
        asked = await requests.ask(number, request)
        if asked.row is None:
            self._unanswered += 1
            self._wait_s = max(self._wait_s, asked.retry_after_s)
        return asked.row

    def _is_over(self) -> bool:
        return self._claim.is_lost or self._claim.is_stopped or self._tools.is_draining()


def custom_id_in(line: RawLine | SuperlinkError) -> str | None:
    """The custom_id of a line, as far as it could be read."""
    if isinstance(line, SuperlinkError) or line.content is None:
        return None
    return custom_id_of(line.content)


def _given_up(deaths: int) -> SuperlinkError:
    message = f"The process that asked this line died {deaths} times, and it is not asked again."
    return SuperlinkError("line_abandoned", message, status=grpc.StatusCode.INTERNAL)
