"""``/v1/batches``: many requests in one file, in OpenAI's shape.

The gateway keeps what is asked for and shows how far it is; the work is done by ``orchestrator.batches``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import grpc
from fastapi import APIRouter, Path, Query, Request
from opentelemetry.trace import get_current_span
from redis.asyncio import Redis

from gateway import examples
from gateway.batches_schema import BatchList, BatchListOptions, BatchObject, BatchRequest, window_of
from gateway.bodies import parse, read_body
from gateway.calls import call_of, owner_of
from gateway.deployment import Deployment, deployment_of
from gateway.documentation import batch_documentation, batches_responses, example_response, problem_response
from superlink.batch_documents import Cancel, Order
from superlink.batch_store import Batch, fresh_id
from superlink.batch_workers import wake_keeper
from superlink.errors import SuperlinkError, invalid_argument
from superlink.public_hosts import AddressRefused, checked_url
from superlink.telemetry import trace_metadata

router = APIRouter()

BATCHES = "/v1/batches"
BatchId = Annotated[str, Path(examples=[examples.BATCH_ID])]


@router.post(BATCHES, response_model=BatchObject, summary="Make a batch", **batch_documentation())
async def create_batch(request: Request) -> BatchObject:
    """Have every line of a file answered, without waiting for it."""
    deployment = deployment_of(request)
    redis = _redis_of(deployment)
    call = call_of(request, deployment.profile.gateway)
    asked = parse(BatchRequest, await read_body(request, call.timeout_s))
    _check_webhook(asked.superlink.webhook_url, deployment)
    await deployment.storage.run(_check_input, deployment, call.owner, asked.input_file_id)
    created_at = datetime.now(UTC)
    order = Order(
        id=fresh_id(),
        owner=call.owner,
        endpoint=asked.endpoint,
        input_file_id=asked.input_file_id,
        completion_window=asked.completion_window,
        metadata=asked.metadata,
        created_at=created_at,
        expires_at=created_at + window_of(asked.completion_window),
        keep_results_s=asked.output_expires_after.seconds if asked.output_expires_after is not None else None,
        webhook_url=asked.superlink.webhook_url,
        trace=dict(trace_metadata(get_current_span())),
    )
    await deployment.storage.run(deployment.batches.add, order)
    await wake_keeper(redis)
    return BatchObject.of(Batch(order))


@router.get(BATCHES, summary="List batches", responses={**batches_responses(), **example_response(examples.BATCH_LIST)})
async def list_batches(request: Request, options: Annotated[BatchListOptions, Query()]) -> BatchList:
    """The batches of the API key, the last one first."""
    deployment = deployment_of(request)
    _redis_of(deployment)
    batches, has_more = await deployment.storage.run(
        deployment.batches.page, owner_of(request), options.limit, options.after or ""
    )
    ids = [batch.order.id for batch in batches]
    return BatchList(
        data=[BatchObject.of(batch) for batch in batches],
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=has_more,
    )


@router.get(
    f"{BATCHES}/{{batch_id}}",
    summary="One batch",
    responses={**batches_responses("unknown_batch"), **example_response(examples.BATCH)},
)
async def get_batch(request: Request, batch_id: BatchId) -> BatchObject:
    """How far it is."""
    deployment = deployment_of(request)
    _redis_of(deployment)
    return BatchObject.of(await deployment.storage.run(deployment.batches.find, owner_of(request), batch_id))


@router.post(
    f"{BATCHES}/{{batch_id}}/cancel",
    summary="Cancel a batch",
    responses={
        **batches_responses("unknown_batch"),
        409: problem_response("batch_over"),
        **example_response(examples.BATCH),
    },
)
async def cancel_batch(request: Request, batch_id: BatchId) -> BatchObject:
    """Have nothing more of it asked. What was answered is kept; the other lines get an error."""
    deployment = deployment_of(request)
    redis = _redis_of(deployment)
    batch = await deployment.storage.run(_cancel, deployment, owner_of(request), batch_id)
    await wake_keeper(redis)
    return BatchObject.of(batch)


def _redis_of(deployment: Deployment) -> Redis:
    """Where the work is handed out. Raises SuperlinkError where the deployment has no batches."""
    if not deployment.profile.batches.enabled or deployment.redis is None:
        raise SuperlinkError(
            "batches_disabled",
            "This deployment works on no batches. Whoever runs it can set batches.enabled, and name a Redis.",
            status=grpc.StatusCode.UNIMPLEMENTED,
        )
    return deployment.redis


def _check_input(deployment: Deployment, owner: str, file_id: str) -> None:
    record = deployment.artifacts.get(owner, file_id)
    if record.purpose != "batch":
        raise invalid_argument(
            "invalid_request",
            f"input_file_id: the file was uploaded for the purpose {record.purpose!r}. Upload it for 'batch'.",
        )
    # Results take up room, too, and are never refused.
    deployment.artifacts.check_room(owner)


def _check_webhook(address: str | None, deployment: Deployment) -> None:
    if address is None:
        return
    webhooks = deployment.profile.batches.webhooks
    if not webhooks.secret:
        raise invalid_argument(
            "webhooks_disabled",
            "This deployment sends no webhooks. Whoever runs it can set batches.webhooks.secret, which signs them.",
        )
    try:
        checked_url(address, webhooks.ports, "A webhook's address")
    except AddressRefused as error:
        raise invalid_argument("webhook_refused", str(error)) from error


def _cancel(deployment: Deployment, owner: str, batch_id: str) -> Batch:
    batch = deployment.batches.find(owner, batch_id)
    if batch.outcome is not None or batch.ending is not None and batch.cancel is None:
        raise SuperlinkError(
            "batch_over",
            f"The batch is {batch.status}; nothing of it is left to cancel.",
            status=grpc.StatusCode.ABORTED,
            retryable=False,
        )
    if batch.cancel is None:
        deployment.batches.write(batch.name, Cancel(requested_at=datetime.now(UTC)))
    return deployment.batches.find(owner, batch_id)
