"""What is kept of a batch in the artifact store: small documents, each written by one process and most of them once.

A batch goes through its life by documents that appear, so that whoever dies on the way leaves nothing half said:

    order      the gateway    what was asked for
    plan       a worker       how the input file is cut into shards, or what is wrong with it
    cancel     the gateway    the owner wants it to end
    record     a worker       of each shard: what has been answered so far, and in which files
    progress   the keeper     counts, for people who wait; they may be behind
    ending     the keeper     from here on nothing more is asked, and why
    outcome    a worker       the files of the results; the batch is over
    delivery   a worker       how the webhook fares
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

EndReason = Literal["completed", "cancelled", "expired"]
FinalStatus = Literal["completed", "cancelled", "expired", "failed"]

# In OpenAI's words.
Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]

# Paths that the lines of a batch may ask: all that take JSON.
Endpoint = Literal[
    "/v1/chat/completions",
    "/v1/answer",
    "/v1/detect",
    "/v1/segment",
    "/v1/pose",
    "/v1/images/generations",
    "/v1/images/edits",
]
ENDPOINTS: tuple[str, ...] = get_args(Endpoint)
MAX_CUSTOM_ID_CHARACTERS = 512


class Document(BaseModel):
    """Written in one step and read whole."""

    model_config = ConfigDict(frozen=True)


class Order(Document):
    """What was asked for."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    # As the client wrote it.
    completion_window: str
    metadata: dict[str, str] | None
    created_at: datetime
    expires_at: datetime
    # Of the files of the results; None: as long as any.
    keep_results_s: int | None = None
    webhook_url: str | None = None
    # The trace that it was ordered in, as call metadata.
    trace: dict[str, str] = {}


class InputProblem(Document):
    """What is wrong with the input file as a whole."""

    code: str
    message: str


class Plan(Document):
    """How the input file is cut. The cuts themselves are in files beside it."""

    planned_at: datetime
    lines: int
    shards: int
    # Of the files that hold the cuts.
    token: str = ""
    # Where there are some, the batch fails and nothing of it is asked.
    problems: tuple[InputProblem, ...] = ()


class Cancel(Document):
    """The owner wants it to end."""

    requested_at: datetime


class ShardRecord(Document):
    """What has been answered of a shard. A line belongs to the results where its number is here, and only there."""

    # Files of rows, in the folder of the shards.
    pieces: tuple[str, ...] = ()
    # Numbers of lines, counted from 1 over the whole input.
    answered: tuple[int, ...] = ()
    completed: int = 0
    failed: int = 0
    is_done: bool = False


class Progress(Document):
    """How many lines have been answered."""

    completed: int = 0
    failed: int = 0


class Ending(Document):
    """From here on nothing more is asked."""

    reason: EndReason
    decided_at: datetime


class Outcome(Document):
    """The batch is over."""

    status: FinalStatus
    ended_at: datetime
    completed: int
    failed: int
    output_file_id: str | None = None
    error_file_id: str | None = None


class Delivery(Document):
    """How the webhook fares."""

    attempts: int
    # None: it is over, one way or the other.
    next_at: datetime | None
    delivered_at: datetime | None = None
    # Why the last attempt failed.
    failure: str = ""
