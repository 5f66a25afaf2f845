"""The first step of a batch: its input file is read once and cut into shards."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

from orchestrator.batches.lines import OVERHEAD_BYTES, RawLine, custom_id_of, lines_of
from superlink.artifacts import ArtifactStore
from superlink.batch_documents import InputProblem, Order, Plan
from superlink.batch_store import BatchName, BatchStore, Cut
from superlink.errors import SuperlinkError, invalid_argument
from superlink.profile import Profile


def plan_batch(order: Order, artifacts: ArtifactStore, batches: BatchStore, profile: Profile) -> None:
    """Write the plan of a batch; nothing happens where there is one.

    Memory does not grow with the file: the custom_ids that have been seen are in a database on disk. Raises
    SuperlinkError ``storage_unavailable``.
    """
    name = BatchName(order.owner, order.id)
    if batches.read(name, Plan) is not None:
        return
    planner = _Planner(profile)
    try:
        record = artifacts.get(order.owner, order.input_file_id)
        with closing(sqlite3.connect("")) as seen, artifacts.open(record) as file:
            planner.seen = seen
            lines = lines_of(file, profile.gateway.max_body_bytes + OVERHEAD_BYTES)
            token = batches.write_cuts(name, planner.cuts(lines), planner.repeated())
        if not planner.lines:
            raise invalid_argument("empty_batch", "The input file has no lines.")
    except SuperlinkError as error:
        if error.code not in ("unknown_file", "too_many_lines", "empty_batch"):
            raise
        problem = InputProblem(code=error.code, message=error.message)
        plan = Plan(planned_at=datetime.now(UTC), lines=0, shards=0, problems=(problem,))
    else:
        plan = Plan(planned_at=datetime.now(UTC), lines=planner.lines, shards=planner.shards, token=token)
    batches.write(name, plan)


class _Planner:
    """Goes through the lines once, and counts."""

    def __init__(self, profile: Profile) -> None:
        self._settings = profile.batches
        self.lines = 0
        self.shards = 0
        self.seen: sqlite3.Connection
        self._repeated = 0

    def cuts(self, lines: Iterator[RawLine]) -> Iterator[Cut]:
        """The shards of ``lines``."""
        # SQLite keeps a database without a name in a temporary file, of which it has 2 MB in memory.
        self.seen.execute("CREATE TABLE seen (custom_id TEXT PRIMARY KEY) WITHOUT ROWID")
        self.seen.execute("CREATE TABLE repeated (line INTEGER PRIMARY KEY)")
        begun: Cut | None = None
        for line in lines:
            self.lines += 1
            if self.lines > self._settings.max_lines:
                limit = self._settings.max_lines
                raise invalid_argument("too_many_lines", f"The input file has more than {limit:,} lines. Cut it.")
            repeats = self._is_repeated(line.content)
            if begun is not None and (
                begun.lines >= self._settings.max_shard_lines or line.end - begun.start > self._settings.max_shard_bytes
            ):
                yield begun
                begun = None
            if begun is None:
                begun = Cut(line.start, line.end, self.lines, 0, self._repeated - repeats, 0)
                self.shards += 1
            begun = Cut(
                begun.start, line.end, begun.first_line, begun.lines + 1, begun.first_repeated, begun.repeated + repeats
            )
        if begun is not None:
            yield begun

    def repeated(self) -> Iterator[int]:
        """The numbers of the lines whose custom_id an earlier line has."""
        for (line,) in self.seen.execute("SELECT line FROM repeated ORDER BY line"):
            yield line

    def _is_repeated(self, content: bytes | None) -> bool:
        custom_id = custom_id_of(content) if content is not None else None
        if custom_id is None:
            return False
        is_new = self.seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (custom_id,)).rowcount
        if is_new:
            return False
        self.seen.execute("INSERT INTO repeated VALUES (?)", (self.lines,))
        self._repeated += 1
        return True
