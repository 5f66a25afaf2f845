"""``/v1/batches``: OpenAI's shape."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gateway import examples
from superlink.batch_documents import Endpoint, Status
from superlink.batch_store import Batch

# A second to seven days.
_WINDOW = r"^([1-9][0-9]{0,3}[sm]|([1-9][0-9]?|1[0-5][0-9]|16[0-8])h|[1-7]d)$"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class ExpiresAfter(BaseModel):
    """When files are deleted."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000, examples=[86_400])


class BatchExtension(BaseModel):
    """What OpenAI's API does not have."""

    model_config = ConfigDict(extra="forbid")

    webhook_url: str | None = Field(
        default=None,
        description="Is sent a signed message when the batch is over. Needs a deployment that signs.",
        examples=["https://example.org/hooks/batches"],
    )


class BatchRequest(BaseModel):
    """A batch to be made."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(description="A file of lines, one request each.", examples=[examples.FILE_ID])
    endpoint: Endpoint = Field(description="What every line asks.")
    completion_window: str = Field(
        pattern=_WINDOW,
        description="After this, lines that are not answered get an error: `24h`, or `90s`, `10m`, `7d` at most.",
        examples=["24h"],
    )
    metadata: dict[MetadataKey, MetadataValue] | None = Field(
        default=None, max_length=16, description="Of one's own making.", examples=[{"run": "night"}]
    )
    output_expires_after: ExpiresAfter | None = Field(
        default=None, description="Unset, or longer: as the deployment says, after 30 days."
    )
    superlink: BatchExtension = BatchExtension()


class RequestCounts(BaseModel):
    """Lines."""

    total: int = Field(description="0 until the input file has been read.")
    completed: int
    failed: int


class BatchError(BaseModel):
    """What is wrong with an input file as a whole."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(BaseModel):
    """All of it."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchObject(BaseModel):
    """A batch. Times are Unix times in seconds, null while it has not come so far."""

    id: str = Field(examples=[examples.BATCH_ID])
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = Field(default=None, description="Why it failed as a whole; null otherwise.")
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None = Field(default=None, description="Lines that were answered, once the batch is over.")
    error_file_id: str | None = Field(default=None, description="Lines that were not.")
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None

    @classmethod
    def of(cls, batch: Batch) -> BatchObject:
        """The REST form of ``batch``."""
        order, plan, outcome = batch.order, batch.plan, batch.outcome
        counts = outcome or batch.progress
        problems = plan.problems if plan is not None else ()
        fields: dict[str, Any] = {
            "id": order.id,
            "endpoint": order.endpoint,
            "errors": {"data": [each.model_dump() for each in problems]} if problems else None,
            "input_file_id": order.input_file_id,
            "completion_window": order.completion_window,
            "status": batch.status,
            "output_file_id": outcome.output_file_id if outcome is not None else None,
            "error_file_id": outcome.error_file_id if outcome is not None else None,
            "created_at": _seconds(order.created_at),
            "in_progress_at": _seconds(plan.planned_at) if plan is not None and not problems else None,
            "expires_at": _seconds(order.expires_at),
            "finalizing_at": _seconds(batch.ending.decided_at) if batch.ending is not None else None,
            "cancelling_at": _seconds(batch.cancel.requested_at) if batch.cancel is not None else None,
            "request_counts": {
                "total": plan.lines if plan is not None else 0,
                "completed": counts.completed if counts is not None else 0,
                "failed": counts.failed if counts is not None else 0,
            },
            "metadata": order.metadata,
        }
        for status in ("completed", "failed", "expired", "cancelled"):
            is_so = outcome is not None and outcome.status == status
            fields[f"{status}_at"] = _seconds(outcome.ended_at) if outcome is not None and is_so else None
        return cls.model_validate(fields)


class BatchList(BaseModel):
    """Some of a client's batches."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None = Field(description="Null where there are none.")
    last_id: str | None = Field(description="`after` of the next page.")
    has_more: bool


class BatchListOptions(BaseModel):
    """Which batches to list. These are query parameters."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(
        default=None, description="The last batch of the page before.", examples=[examples.BATCH_ID]
    )
    limit: int = Field(default=20, ge=1, le=100, description="Of one page.", examples=[20])


def window_of(text: str) -> timedelta:
    """``"24h"`` as a time."""
    return timedelta(**{_UNITS[text[-1]]: int(text[:-1])})


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
