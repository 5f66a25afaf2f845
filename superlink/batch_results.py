"""What the gateway says of files and batches, as typed values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, get_args

from pydantic import Field

from superlink.batch_documents import FinalStatus, Status
from superlink.detections import Result
from superlink.results import Problem

OVER = frozenset(get_args(FinalStatus))


class StoredFile(Result):
    """A file of the client's."""

    id: str
    bytes: int
    filename: str
    purpose: str
    created_at: datetime
    expires_at: datetime


class LineCounts(Result):
    """How many lines a batch has, and how many have been answered or failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputError(Result):
    """What is wrong with an input file as a whole."""

    code: str
    message: str


class InputErrors(Result):
    """All of it."""

    data: tuple[InputError, ...] = ()


class BatchJob(Result):
    """A batch: many requests in one file."""

    id: str
    status: Status
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: datetime
    expires_at: datetime
    # Once it is over.
    output_file_id: str | None = None
    error_file_id: str | None = None
    counts: LineCounts = Field(default=LineCounts(), alias="request_counts")
    # Why it failed as a whole.
    errors: InputErrors | None = None
    metadata: Mapping[str, str] | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status in OVER

    @property
    def left_s(self) -> float:
        """Seconds until its completion window is over."""
        return max(0.0, (self.expires_at - datetime.now(UTC)).total_seconds())


class BatchPage(Result):
    """Some batches, the last one first."""

    data: tuple[BatchJob, ...] = ()
    has_more: bool = False


class LineError(Problem):
    """Why a line has no answer."""

    # Counted from 1.
    line: int = 0


class LineResult(Result):
    """What became of a line."""

    # None: the line could not be read so far.
    custom_id: str | None
    # What the endpoint answered, as the REST API has it; None where ``error`` says why.
    body: Mapping[str, Any] | None = None
    error: LineError | None = None


def line_result_of(row: bytes | str) -> LineResult:
    """A row of a file of results."""
    document = json.loads(row)
    error = document["error"]
    response = document["response"] or {}
    return LineResult(
        custom_id=document["custom_id"],
        body=response.get("body") if error is None else None,
        error=None if error is None else LineError.model_validate(error),
    )
