"""The files of the artifact store: where they lie, and how they are listed, read and written."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, cast

import grpc
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.utils import get_protocol  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, ValidationError

from superlink.configuration import ConfigurationError
from superlink.errors import SuperlinkError

logger = logging.getLogger(__name__)

RECORD, CONTENT, PART = ".json", ".data", ".part"
# How much of a file an object store is sent at a time, and so how much of it is in memory.
PIECE_BYTES = 8 * 1024 * 1024
# Records that are asked for at a time.
_READERS = 16
# A store that does not answer is given up after 20 s. By themselves s3fs and botocore, each with five attempts, take
# more than six minutes, and requests for files wait as long.
_S3_CLIENT = {
    "connect_timeout": 3,
    "read_timeout": 10,
    "retries": {"mode": "standard", "total_max_attempts": 1},
    # Who waits for a connection waits beyond these.
    "max_pool_connections": 64,
}
_S3_ATTEMPTS = 2


class ArtifactRecord(BaseModel):
    """What is known of an artifact. It never changes."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    # As its owner calls it.
    name: str
    purpose: str
    size_bytes: int
    sha256: str
    created_at: datetime
    expires_at: datetime
    # The file of the content, in the owner's folder.
    content: str


@dataclass(frozen=True)
class Entry:
    """A file as a listing has it."""

    name: str
    size_bytes: int


class ArtifactFiles:
    """Files in one folder an owner. Every method raises what its kind of store raises: see ``storage_failures``."""

    def __init__(self, url: str) -> None:
        """``url``: any that fsspec knows, or a folder. Raises ConfigurationError for another one."""
        # Listings that are kept would not show what other processes write.
        options: dict[str, Any] = {"use_listings_cache": False}
        self._is_local = get_protocol(url) in ("file", "local")
        is_s3 = get_protocol(url) in ("s3", "s3a")
        if self._is_local:
            options["auto_mkdir"] = True
        if is_s3:
            options["config_kwargs"] = _S3_CLIENT
        try:
            self._store, self._root = url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"artifacts.url: {url!r} cannot be opened: {error}") from error
        if is_s3:
            self._store.retries = _S3_ATTEMPTS

    def owners(self) -> list[str]:
        """Whose files there are."""
        return [_name(info) for info in self._infos(self._root) if info["type"] == "directory"]

    def listed(self, owner: str) -> list[Entry]:
        """All files of an owner."""
        infos = self._infos(f"{self._root}/{owner}")
        return [Entry(_name(info), info["size"]) for info in infos if info["type"] == "file"]

    def read_records(self, owner: str, names: Sequence[str]) -> list[ArtifactRecord]:
        """The records in these files, in this order, without those that are gone."""
        paths = [self._path(owner, name) for name in names]
        # One after the other they would take half a minute in an object store.
        with ThreadPoolExecutor(_READERS) as readers:
            return [record for record in readers.map(self._read_record, paths) if record is not None]

    def write_record(self, record: ArtifactRecord) -> None:
        """In one step: a reader finds all of it, or what was there before."""
        self.write_document(record.owner, f"{record.id}{RECORD}", record.model_dump_json().encode())

    def write_document(self, owner: str, name: str, document: bytes) -> None:
        """A small file in one step, as ``write_record``."""
        path = self._path(owner, name)
        if not self._is_local:
            # Objects are always written in one step.
            self._store.pipe_file(path, document)
            return
        part = self._path(owner, f"{name}.{secrets.token_hex(4)}{PART}")
        try:
            self._store.pipe_file(part, document)
            self._store.mv(part, path)
        except OSError:
            # The disk is full, perhaps: what there is of it must not take up more.
            with suppress(OSError):
                self._store.rm_file(part)
            raise

    def read_document(self, owner: str, name: str) -> bytes | None:
        """A small file; None where there is none."""
        try:
            return cast(bytes, self._store.cat_file(self._path(owner, name)))
        except FileNotFoundError:
            return None

    def read_range(self, owner: str, name: str, start: int, end: int) -> bytes:
        """The bytes of a file from ``start`` up to ``end``. Raises FileNotFoundError."""
        return cast(bytes, self._store.cat_file(self._path(owner, name), start=start, end=end))

    def folders(self, folder: str) -> list[str]:
        """The names of the folders in one."""
        return [_name(info) for info in self._infos(f"{self._root}/{folder}") if info["type"] == "directory"]

    def remove_folder(self, folder: str) -> None:
        """With all that is in it; nothing happens where there is none."""
        with suppress(FileNotFoundError):
            self._store.rm(f"{self._root}/{folder}", recursive=True)

    def open_to_read(self, owner: str, name: str) -> BinaryIO:
        """A file that exists. Raises FileNotFoundError."""
        return cast(BinaryIO, self._store.open(self._path(owner, name), "rb"))

    def open_to_write(self, owner: str, name: str) -> BinaryIO:
        """A new file."""
        return cast(BinaryIO, self._store.open(self._path(owner, name), "wb", block_size=PIECE_BYTES))

    def discard(self, owner: str, name: str, file: BinaryIO) -> None:
        """Give up a file that is being written, as far as the store lets it."""
        with suppress(Exception):
            file.close()
        with suppress(Exception):
            self.remove(owner, name)

    def remove(self, owner: str, name: str) -> None:
        """Nothing happens where there is no such file."""
        try:
            self._store.rm_file(self._path(owner, name))
        except FileNotFoundError:
            return

    def age(self, owner: str, name: str) -> timedelta:
        """Since a file was written; none where it is gone."""
        try:
            written: datetime = self._store.modified(self._path(owner, name))
        except FileNotFoundError:
            return timedelta()
        return datetime.now(UTC) - (written if written.tzinfo is not None else written.replace(tzinfo=UTC))

    def _read_record(self, path: str) -> ArtifactRecord | None:
        try:
            return ArtifactRecord.model_validate_json(self._store.cat_file(path))
        except FileNotFoundError:
            return None
        except ValidationError:
            logger.warning("a record cannot be read", extra={"file": path})
            return None

    def _path(self, owner: str, name: str) -> str:
        return f"{self._root}/{owner}/{name}"

    def _infos(self, folder: str) -> list[dict[str, Any]]:
        try:
            return cast(list[dict[str, Any]], self._store.ls(folder, detail=True))
        except FileNotFoundError:
            return []


@contextmanager
def storage_failures() -> Iterator[None]:
    """Raise SuperlinkError ``storage_unavailable`` where the store fails; each kind has exceptions of its own."""
    try:
        yield
    except SuperlinkError:
        raise
    except Exception as error:
        logger.exception("the artifact store failed")
        raise SuperlinkError(
            "storage_unavailable",
            "The store of files does not answer. Try again shortly.",
            status=grpc.StatusCode.UNAVAILABLE,
            service="artifacts",
            retry_after_ms=1000,
        ) from error


def _name(info: dict[str, Any]) -> str:
    return str(info["name"]).rstrip("/").rpartition("/")[2]
