"""Where batches are kept: a folder each, in the artifact store.

In the folder of the store lie, beside the files of clients,

    batches/open/OWNER.BATCH               of each batch that is not over: an index, so that nobody looks at all others
    batches/by-owner/OWNER/BATCH/NAME.json              its documents, see ``superlink.batch_documents``
    batches/by-owner/OWNER/BATCH/cuts.TOKEN.data        where its shards begin and end, see ``Cut``
    batches/by-owner/OWNER/BATCH/shards/NUMBER.json     the record of a shard
    batches/by-owner/OWNER/BATCH/shards/NUMBER.TOKEN.data   rows that the record names

All calls block, and raise SuperlinkError ``storage_unavailable`` when the store fails.
"""

from __future__ import annotations

import re
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, TypeVar

import grpc

from superlink import artifacts
from superlink.artifact_files import CONTENT, RECORD, ArtifactFiles, storage_failures
from superlink.batch_documents import (
    Cancel,
    Delivery,
    Document,
    Ending,
    Order,
    Outcome,
    Plan,
    Progress,
    ShardRecord,
    Status,
)
from superlink.errors import SuperlinkError
from superlink.profile import Profile

ID_PREFIX = "batch_"
_ID = re.compile(r"batch_[0-9a-f]{12}[0-9a-f]{16}")

_BATCHES = "batches/by-owner"
_OPEN = "batches/open"
_CUT = struct.Struct("<QQQQQQ")
_LINE_NUMBER = struct.Struct("<Q")
_READERS = 16

Kind = TypeVar("Kind", bound=Document)


@dataclass(frozen=True)
class BatchName:
    """Whose batch, and which."""

    owner: str
    id: str

    @property
    def folder(self) -> str:
        """In the store."""
        return f"{_BATCHES}/{self.owner}/{self.id}"

    @property
    def shards(self) -> str:
        """The folder of its shards."""
        return f"{self.folder}/shards"


@dataclass(frozen=True)
class Cut:
    """One shard: a range of the input file."""

    # In bytes.
    start: int
    end: int
    # Counted from 1 over the whole file.
    first_line: int
    lines: int
    # Lines whose custom_id an earlier line has.
    first_repeated: int
    repeated: int


@dataclass(frozen=True)
class Batch:
    """A batch as its documents have it."""

    order: Order
    plan: Plan | None = None
    cancel: Cancel | None = None
    ending: Ending | None = None
    outcome: Outcome | None = None
    progress: Progress | None = None

    @property
    def name(self) -> BatchName:
        """Whose batch, and which."""
        return BatchName(self.order.owner, self.order.id)

    @property
    def status(self) -> Status:
        """In OpenAI's words."""
        if self.outcome is not None:
            return self.outcome.status
        if self.cancel is not None and (self.ending is None or self.ending.reason == "cancelled"):
            return "cancelling"
        if self.ending is not None:
            return "finalizing"
        return "validating" if self.plan is None else "in_progress"


def fresh_id() -> str:
    """As those of files: they sort by time, and cannot be guessed."""
    return artifacts.fresh_id(ID_PREFIX)


def open_batches(profile: Profile) -> BatchStore:
    """The batches of a deployment. Nothing is asked of the store yet. Raises as ``superlink.artifacts.open_store``."""
    return BatchStore(ArtifactFiles(profile.artifacts.url or str(artifacts.default_folder(profile))))


class BatchStore:
    """The batches of all owners."""

    def __init__(self, files: ArtifactFiles) -> None:
        """See ``open_batches``."""
        self._files = files

    def add(self, order: Order) -> None:
        """Keep an order; it is found by whoever works on batches."""
        name = BatchName(order.owner, order.id)
        self.write(name, order)
        with storage_failures():
            self._files.write_document(_OPEN, f"{name.owner}.{name.id}", b"")

    def write(self, name: BatchName, document: Document) -> None:
        """Put a document in its place, in one step."""
        with storage_failures():
            self._files.write_document(name.folder, _file_of(type(document)), document.model_dump_json().encode())

    def read(self, name: BatchName, kind: type[Kind]) -> Kind | None:
        """A document; None where there is none yet."""
        with storage_failures():
            content = self._files.read_document(name.folder, _file_of(kind))
        return None if content is None else kind.model_validate_json(content)

    def find(self, owner: str, batch_id: str) -> Batch:
        """A batch with its documents. Raises SuperlinkError ``unknown_batch``."""
        name = BatchName(owner, batch_id)
        batch = self.load(name) if _ID.fullmatch(batch_id) else None
        if batch is None:
            raise SuperlinkError(
                "unknown_batch", f"There is no batch {batch_id[:100]!r}.", status=grpc.StatusCode.NOT_FOUND
            )
        return batch

    def load(self, name: BatchName) -> Batch | None:
        """As ``find``; None where there is no such batch."""
        with storage_failures():
            present = {entry.name for entry in self._files.listed(name.folder)}
        found = {kind: self.read(name, kind) for kind in _FILES if _FILES[kind] in present and kind is not Delivery}
        order = found.get(Order)
        if not isinstance(order, Order):
            return None
        return Batch(order, *(found.get(kind) for kind in (Plan, Cancel, Ending, Outcome, Progress)))  # type: ignore[arg-type]

    def page(self, owner: str, limit: int, after: str) -> tuple[list[Batch], bool]:
        """``limit`` batches of an owner behind the one called ``after``, the last one first; whether others follow."""
        with storage_failures():
            ids = sorted(filter(_ID.fullmatch, self._files.folders(f"{_BATCHES}/{owner}")), reverse=True)
        if after:
            ids = [each for each in ids if each < after]
        with ThreadPoolExecutor(_READERS) as readers:
            found = readers.map(lambda each: self.load(BatchName(owner, each)), ids[:limit])
            return [batch for batch in found if batch is not None], len(ids) > limit

    def open_names(self) -> list[BatchName]:
        """The batches that are not over."""
        with storage_failures():
            names = sorted(entry.name for entry in self._files.listed(_OPEN))
        pairs = (name.partition(".") for name in names)
        return [BatchName(owner, batch_id) for owner, _, batch_id in pairs if _ID.fullmatch(batch_id)]

    def close(self, name: BatchName) -> None:
        """The batch is over, and everything about it is done: what its results were made of goes."""
        with storage_failures():
            self._files.remove_folder(name.shards)
            for entry in self._files.listed(name.folder):
                if entry.name.endswith(CONTENT):
                    self._files.remove(name.folder, entry.name)
            self._files.remove(_OPEN, f"{name.owner}.{name.id}")

    def forget_ended_before(self, moment: datetime) -> int:
        """Delete the batches that were over before ``moment``; returns how many."""
        forgotten = 0
        still_open = set(self.open_names())
        with storage_failures():
            for owner in self._files.folders(_BATCHES):
                for batch_id in self._files.folders(f"{_BATCHES}/{owner}"):
                    name = BatchName(owner, batch_id)
                    outcome = None if name in still_open else self.read(name, Outcome)
                    if outcome is not None and outcome.ended_at < moment:
                        self._files.remove_folder(name.folder)
                        forgotten += 1
        return forgotten

    def write_cuts(self, name: BatchName, cuts: Iterable[Cut], repeated: Iterable[int]) -> str:
        """Where the shards are, and the numbers of lines whose custom_id an earlier line has; returns their token.

        They are found by the plan that has the token. ``cuts`` is read to its end before ``repeated`` is begun.
        """
        token = secrets.token_hex(6)
        packed_cuts = (
            _CUT.pack(cut.start, cut.end, cut.first_line, cut.lines, cut.first_repeated, cut.repeated) for cut in cuts
        )
        self._write_content(name.folder, _cuts_of(token), packed_cuts)
        self._write_content(name.folder, _repeated_of(token), (_LINE_NUMBER.pack(line) for line in repeated))
        return token

    def read_cut(self, name: BatchName, plan: Plan, shard: int) -> tuple[Cut, frozenset[int]]:
        """A shard, and its lines whose custom_id an earlier line has."""
        start, end = shard * _CUT.size, (shard + 1) * _CUT.size
        with storage_failures():
            cut = Cut(*_CUT.unpack(self._files.read_range(name.folder, _cuts_of(plan.token), start, end)))
            if not cut.repeated:
                return cut, frozenset()
            places = (cut.first_repeated, cut.first_repeated + cut.repeated)
            start, end = (place * _LINE_NUMBER.size for place in places)
            lines = self._files.read_range(name.folder, _repeated_of(plan.token), start, end)
        return cut, frozenset(line for (line,) in _LINE_NUMBER.iter_unpack(lines))

    def read_record(self, name: BatchName, shard: int) -> ShardRecord:
        """What has been answered of a shard; an empty one where nothing has."""
        with storage_failures():
            content = self._files.read_document(name.shards, _record_of(shard))
        if content is None:
            return ShardRecord()
        return ShardRecord.model_validate_json(content)

    def write_record(self, name: BatchName, shard: int, record: ShardRecord) -> None:
        """In one step: from then on its pieces belong to the results."""
        with storage_failures():
            self._files.write_document(name.shards, _record_of(shard), record.model_dump_json().encode())

    def write_piece(self, name: BatchName, shard: int, rows: Sequence[bytes]) -> str:
        """Rows under a name that nobody knows until a record has it."""
        piece = f"{shard:08d}.{secrets.token_hex(6)}{CONTENT}"
        self._write_content(name.shards, piece, rows)
        return piece

    def open_piece(self, name: BatchName, piece: str) -> BinaryIO:
        """Rows, to be read."""
        with storage_failures():
            return self._files.open_to_read(name.shards, piece)

    def records(self, name: BatchName) -> Iterator[tuple[int, ShardRecord]]:
        """Of all shards of which something has been answered."""
        with storage_failures():
            names = [entry.name for entry in self._files.listed(name.shards) if entry.name.endswith(RECORD)]
        shards = [int(each.partition(".")[0]) for each in names]
        with ThreadPoolExecutor(_READERS) as readers:
            yield from zip(shards, readers.map(lambda shard: self.read_record(name, shard), shards), strict=True)

    def _write_content(self, folder: str, file_name: str, content: Iterable[bytes]) -> None:
        with storage_failures():
            file = self._files.open_to_write(folder, file_name)
            try:
                for each in content:
                    file.write(each)
                file.close()
            except BaseException:
                # What is left is removed with the folder.
                self._files.discard(folder, file_name, file)
                raise


_FILES: dict[type[Document], str] = {
    kind: f"{kind.__name__.lower()}{RECORD}" for kind in (Order, Plan, Cancel, Ending, Outcome, Progress, Delivery)
}


def _file_of(kind: type[Document]) -> str:
    return _FILES[kind]


def _record_of(shard: int) -> str:
    return f"{shard:08d}{RECORD}"


def _cuts_of(token: str) -> str:
    return f"cuts.{token}{CONTENT}"


def _repeated_of(token: str) -> str:
    return f"repeated.{token}{CONTENT}"
