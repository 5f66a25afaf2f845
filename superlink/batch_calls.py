"""``/v1/files`` and ``/v1/batches`` as the SDK writes and reads them; no connection in sight."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

import httpx

from superlink.batch_results import BatchJob, BatchPage, StoredFile
from superlink.rest import Call

BATCHES, FILES = "/v1/batches", "/v1/files"
# What is written of an input file before it goes to a disk.
_IN_MEMORY_BYTES = 8 * 1024 * 1024

# Each with its custom_id: pairs, or a file that holds whole lines.
Requests = Iterable[tuple[str, Mapping[str, Any]]]
BatchInput = Requests | Mapping[str, Mapping[str, Any]] | str | os.PathLike[str]


def line_of(custom_id: str, endpoint: str, body: Mapping[str, Any]) -> bytes:
    """A line of an input file."""
    line = {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


@contextmanager
def opened_input(requests: BatchInput, endpoint: str) -> Iterator[tuple[str, BinaryIO]]:
    """The input file's name and content; what is not a file yet is written to a temporary one."""
    if isinstance(requests, str | os.PathLike):
        path = Path(requests)
        with path.open("rb") as file:
            yield path.name, file
        return
    pairs = requests.items() if isinstance(requests, Mapping) else requests
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as written:
        for custom_id, body in pairs:
            written.write(line_of(custom_id, endpoint, body))
        written.seek(0)
        yield "requests.jsonl", written  # type: ignore[misc]


def upload_call(name: str, file: BinaryIO, purpose: str) -> Call:
    """Keep a file."""
    return Call(FILES, {}, form={"purpose": purpose}, files={"file": (name, file, "application/octet-stream")})


def content_call(file_id: str) -> Call:
    """The content of a file."""
    return Call(f"{FILES}/{quote(file_id, safe='')}/content", {}, method="GET")


def create_call(
    input_file_id: str,
    endpoint: str,
    completion_window: str,
    metadata: Mapping[str, str] | None,
    webhook_url: str | None,
) -> Call:
    """Make a batch of a file."""
    body: dict[str, Any] = {
        "input_file_id": input_file_id,
        "endpoint": endpoint,
        "completion_window": completion_window,
    }
    if metadata is not None:
        body["metadata"] = dict(metadata)
    if webhook_url is not None:
        body["superlink"] = {"webhook_url": webhook_url}
    return Call(BATCHES, {}, json=body)


def batch_call(batch_id: str) -> Call:
    """How far a batch is."""
    return Call(f"{BATCHES}/{quote(batch_id, safe='')}", {}, method="GET")


def cancel_call(batch_id: str) -> Call:
    """Have nothing more of it asked."""
    return Call(f"{BATCHES}/{quote(batch_id, safe='')}/cancel", {})


def list_call(limit: int, after: str | None) -> Call:
    """Some batches."""
    query = {"limit": limit} if after is None else {"limit": limit, "after": after}
    return Call(f"{BATCHES}?{urlencode(query)}", {}, method="GET")


def file_of(call: Call, response: httpx.Response) -> StoredFile:  # noqa: ARG001
    """The response."""
    return StoredFile.model_validate(response.json())


def batch_of(call: Call, response: httpx.Response) -> BatchJob:  # noqa: ARG001
    """The response."""
    return BatchJob.model_validate(response.json())


def batches_of(call: Call, response: httpx.Response) -> BatchPage:  # noqa: ARG001
    """The response."""
    return BatchPage.model_validate(response.json())


class LineSplitter:
    """Cuts pieces of a file into lines."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The lines that ``piece`` completes."""
        first, *others = piece.split(b"\n")
        self._held += first
        for other in others:
            if self._held:
                yield bytes(self._held)
            self._held = bytearray(other)
