"""The artifact store: files of clients, in a folder or in an object store, by fsspec.

An artifact is content and a record of it. The content is written first, under a name that nobody knows, and the record
in one step at the end: what is found is whole, whatever happens to a process that writes. Each artifact belongs to an
owner, who alone finds it, and expires. In the folder of the store lie

    OWNER/ID.json            the record
    OWNER/ID.TOKEN.data      the content that the record names

All calls block: an event loop has them made in threads. Every process of a deployment may have a store of the same
address, and all see the same.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import grpc

from superlink.artifact_files import CONTENT, PART, RECORD, ArtifactFiles, ArtifactRecord, storage_failures
from superlink.errors import SuperlinkError, invalid_argument
from superlink.profile import ARTIFACTS, ArtifactSettings, Profile, state_folder_of

logger = logging.getLogger(__name__)

# How ids begin that nobody chose.
ID_PREFIX = "file-"
# Content without a record belongs to a writer that is at work, or to one that died; after this it died.
ABANDONED_AFTER = timedelta(days=1)
# Records that are read at a time.
_RECORDS_AT_ONCE = 500
# Of owners and of artifacts.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True)
class Page:
    """Some of an owner's artifacts, in order."""

    records: Sequence[ArtifactRecord]
    # Whether others follow.
    has_more: bool


def open_store(profile: Profile) -> ArtifactStore:
    """The store of a deployment. Nothing is asked of it yet.

    Raises ConfigurationError for an address that fsspec does not know, or needs a package for that is not installed.
    """
    settings = profile.artifacts
    return ArtifactStore(settings, ArtifactFiles(settings.url or str(default_folder(profile))))


def default_folder(profile: Profile) -> Path:
    """Where a profile that names no address keeps its artifacts."""
    return state_folder_of(profile) / ARTIFACTS


class ArtifactStore:
    """The artifacts of all owners. Every method raises SuperlinkError ``storage_unavailable`` when the store fails."""

    def __init__(self, settings: ArtifactSettings, files: ArtifactFiles) -> None:
        """See ``open_store``."""
        self._settings = settings
        self._files = files

    def create(self, owner: str, artifact_id: str = "", size_bytes: int = 0) -> ArtifactWriter:
        """A writer of a new artifact.

        ``artifact_id``: a fresh one, which sorts behind those before it, unless one is given; a second artifact with
        the same id takes the place of the first. ``size_bytes``: as far as it is known. Raises SuperlinkError
        ``file_too_large`` or ``storage_quota_exceeded``.
        """
        _check_name(owner)
        _check_name(artifact_id := artifact_id or fresh_id(ID_PREFIX))
        if size_bytes > self._settings.max_file_bytes:
            raise _too_large(self._settings)
        self.check_room(owner, size_bytes)
        return ArtifactWriter(self._settings, self._files, owner, artifact_id, self._settings.max_file_bytes)

    def create_output(self, owner: str, artifact_id: str) -> ArtifactWriter:
        """A writer of what the deployment itself made for an owner.

        No limit holds for it: it is there already, in pieces, and would otherwise be lost.
        """
        _check_name(owner)
        _check_name(artifact_id)
        return ArtifactWriter(self._settings, self._files, owner, artifact_id, None)

    def check_room(self, owner: str, size_bytes: int = 0) -> None:
        """Raise SuperlinkError ``storage_quota_exceeded`` unless an owner may keep so much more."""
        _check_name(owner)
        with storage_failures():
            used = sum(entry.size_bytes for entry in self._files.listed(owner) if entry.name.endswith(CONTENT))
        if used + size_bytes > self._settings.max_owner_bytes:
            raise invalid_argument(
                "storage_quota_exceeded",
                f"Your files take up {used:,} of {self._settings.max_owner_bytes:,} bytes. Delete some.",
            )

    def get(self, owner: str, artifact_id: str) -> ArtifactRecord:
        """The record of an artifact. Raises SuperlinkError ``unknown_file``."""
        _check_name(owner)
        records: list[ArtifactRecord] = []
        if _NAME.fullmatch(artifact_id):
            with storage_failures():
                records = self._files.read_records(owner, [f"{artifact_id}{RECORD}"])
        if not records or records[0].expires_at <= datetime.now(UTC):
            raise _unknown(artifact_id)
        return records[0]

    def page(
        self, owner: str, *, limit: int, after: str = "", newest_first: bool = True, purpose: str | None = None
    ) -> Page:
        """``limit`` artifacts of an owner, in the order of their ids, behind that called ``after``."""
        _check_name(owner)
        found: list[ArtifactRecord] = []
        now = datetime.now(UTC)
        with storage_failures():
            entries = self._files.listed(owner)
            ids = [entry.name.removesuffix(RECORD) for entry in entries if entry.name.endswith(RECORD)]
            ids.sort(reverse=newest_first)
            if after:
                ids = [each for each in ids if (each < after if newest_first else each > after)]
            for start in range(0, len(ids), _RECORDS_AT_ONCE):
                names = [f"{each}{RECORD}" for each in ids[start : start + _RECORDS_AT_ONCE]]
                records = self._files.read_records(owner, names)
                found += [each for each in records if each.expires_at > now and purpose in (None, each.purpose)]
                if len(found) > limit:
                    break
        return Page(found[:limit], len(found) > limit)

    def open(self, record: ArtifactRecord) -> BinaryIO:
        """The content, to be read. Raises SuperlinkError ``unknown_file`` where it has been deleted meanwhile."""
        with storage_failures():
            try:
                return self._files.open_to_read(record.owner, record.content)
            except FileNotFoundError as error:
                raise _unknown(record.id) from error

    def read_range(self, record: ArtifactRecord, start: int, end: int) -> bytes:
        """The bytes of the content from ``start`` up to ``end``. Raises as ``open``."""
        with storage_failures():
            try:
                return self._files.read_range(record.owner, record.content, start, end)
            except FileNotFoundError as error:
                raise _unknown(record.id) from error

    def delete(self, owner: str, artifact_id: str) -> None:
        """Forget an artifact. Raises SuperlinkError ``unknown_file``."""
        record = self.get(owner, artifact_id)
        with storage_failures():
            self._forget(record)

    def sweep(self) -> int:
        """Forget what has expired and what writers that died left behind; returns how many artifacts and files went."""
        swept = 0
        now = datetime.now(UTC)
        with storage_failures():
            for owner in self._files.owners():
                entries = self._files.listed(owner)
                names = [entry.name for entry in entries if entry.name.endswith(RECORD)]
                known: set[str] = set()
                for start in range(0, len(names), _RECORDS_AT_ONCE):
                    for record in self._files.read_records(owner, names[start : start + _RECORDS_AT_ONCE]):
                        known.add(record.content)
                        if record.expires_at <= now:
                            self._forget(record)
                            swept += 1
                strays = [
                    entry.name
                    for entry in entries
                    if entry.name.endswith(PART) or entry.name.endswith(CONTENT) and entry.name not in known
                ]
                for name in strays:
                    if self._files.age(owner, name) > ABANDONED_AFTER:
                        self._files.remove(owner, name)
                        swept += 1
        return swept

    def _forget(self, record: ArtifactRecord) -> None:
        # In this order: content without a record is swept, a record without content would be found.
        self._files.remove(record.owner, f"{record.id}{RECORD}")
        self._files.remove(record.owner, record.content)


class ArtifactWriter:
    """Writes one artifact. As a context manager it discards what was not committed."""

    def __init__(
        self, settings: ArtifactSettings, files: ArtifactFiles, owner: str, artifact_id: str, max_bytes: int | None
    ) -> None:
        """Use ``ArtifactStore.create``."""
        self._settings = settings
        self._max_bytes = max_bytes
        self._files = files
        self._owner = owner
        self._id = artifact_id
        # Two writers of one id never share a file.
        self._content = f"{artifact_id}.{secrets.token_hex(4)}{CONTENT}"
        self._size_bytes = 0
        self._digest = hashlib.sha256()
        self._has_ended = False
        with storage_failures():
            self._file = files.open_to_write(owner, self._content)

    def __enter__(self) -> ArtifactWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, piece: bytes) -> None:
        """Add to the content. Raises SuperlinkError ``file_too_large``."""
        self._size_bytes += len(piece)
        if self._max_bytes is not None and self._size_bytes > self._max_bytes:
            raise _too_large(self._settings)
        self._digest.update(piece)
        with storage_failures():
            self._file.write(piece)

    def commit(self, name: str, purpose: str, keep_s: int | None = None) -> ArtifactRecord:
        """End the content and let it be found. ``keep_s``: as long as the settings say, unless that is longer."""
        longest_s = self._settings.keep_s
        created_at = datetime.now(UTC)
        record = ArtifactRecord(
            id=self._id,
            owner=self._owner,
            name=name,
            purpose=purpose,
            size_bytes=self._size_bytes,
            sha256=self._digest.hexdigest(),
            created_at=created_at,
            expires_at=created_at + timedelta(seconds=min(keep_s or longest_s, longest_s)),
            content=self._content,
        )
        with storage_failures():
            self._file.close()
            self._files.write_record(record)
        self._has_ended = True
        return record

    def discard(self) -> None:
        """Forget what was written, unless it was committed."""
        if self._has_ended:
            return
        self._has_ended = True
        try:
            with storage_failures():
                try:
                    self._file.close()
                finally:
                    # A full disk fails the end of a file, and needs the room most.
                    self._files.remove(self._owner, self._content)
        except SuperlinkError:
            # Swept one day; whatever led here is what matters.
            logger.warning("content was left behind", extra={"file": self._content})


def fresh_id(prefix: str) -> str:
    """Ids sort by the time at which they were made, and cannot be guessed."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"


def _check_name(name: str) -> None:
    """Raise ValueError unless ``name`` can be a part of a path."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} names no owner and no artifact")


def _too_large(settings: ArtifactSettings) -> SuperlinkError:
    return invalid_argument("file_too_large", f"The file is larger than {settings.max_file_bytes:,} bytes.")


def _unknown(artifact_id: str) -> SuperlinkError:
    return SuperlinkError(
        "unknown_file",
        f"There is no file {artifact_id[:100]!r}. It may have expired or been deleted.",
        status=grpc.StatusCode.NOT_FOUND,
    )
