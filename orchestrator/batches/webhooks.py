"""The message to whoever waits for a batch, signed as Standard Webhooks have it.

`client.webhooks.unwrap` of OpenAI's client reads and checks it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import httpx

from superlink.batch_documents import Delivery, Order, Outcome
from superlink.profile import WebhookSettings
from superlink.public_hosts import (
    AddressRefused,
    SystemResolver,
    checked_url,
    open_transport,
    public_addresses,
    request_to,
)
from superlink.webhook_secrets import secret_bytes

logger = logging.getLogger(__name__)

SUBJECT = "A webhook's address"


def deliver(order: Order, outcome: Outcome, before: Delivery | None, settings: WebhookSettings) -> Delivery:
    """Make one attempt; returns what is then known."""
    attempts = (before.attempts if before is not None else 0) + 1
    try:
        asyncio.run(_send(order, outcome, settings))
    except (_Refused, AddressRefused) as error:
        waits = settings.retry_after_s
        is_last = isinstance(error, AddressRefused) or attempts > len(waits)
        next_at = None if is_last else datetime.now(UTC) + timedelta(seconds=waits[attempts - 1])
        logger.warning(
            "a webhook was not delivered",
            extra={"batch": order.id, "attempt": attempts, "reason": str(error), "given_up": is_last},
        )
        return Delivery(attempts=attempts, next_at=next_at, failure=str(error))
    return Delivery(attempts=attempts, next_at=None, delivered_at=datetime.now(UTC))


def signed_headers(message_id: str, timestamp: int, body: bytes, secret: str) -> dict[str, str]:
    """What says that the message is ours, and when it was sent."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    signature = base64.b64encode(hmac.digest(secret_bytes(secret), signed, hashlib.sha256)).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }


def event_of(order: Order, outcome: Outcome) -> tuple[str, bytes]:
    """The id of the message, the same in every attempt, and the message itself."""
    message_id = f"evt_{hashlib.sha256(order.id.encode()).hexdigest()[:32]}"
    event: Mapping[str, object] = {
        "id": message_id,
        "object": "event",
        "created_at": int(outcome.ended_at.timestamp()),
        "type": f"batch.{outcome.status}",
        "data": {"id": order.id},
    }
    return message_id, json.dumps(event, separators=(",", ":")).encode()


async def _send(order: Order, outcome: Outcome, settings: WebhookSettings) -> None:
    """Raises _Refused where it was not taken."""
    message_id, body = event_of(order, outcome)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "user-agent": "superlink",
        **signed_headers(message_id, int(time.time()), body, settings.secret),
    }
    url = checked_url(order.webhook_url or "", settings.ports, SUBJECT)
    try:
        async with asyncio.timeout(settings.timeout_s), aclosing(open_transport()) as transport:
            for place in await public_addresses(url.host, SystemResolver(), settings.allowed_networks):
                try:
                    response = await transport.handle_async_request(request_to(place, "POST", url, headers, body))
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    continue
                await response.aclose()
                if not response.is_success:
                    # Redirects are not followed: they could lead anywhere.
                    raise _Refused(f"the server at {url.host} answers with the status {response.status_code}")
                return
    except TimeoutError as error:
        raise _Refused(f"the server at {url.host} did not answer within {settings.timeout_s:g} s") from error
    except httpx.HTTPError as error:
        raise _Refused(f"the connection to {url.host} broke ({type(error).__name__})") from error
    raise _Refused(f"no connection to the server at {url.host}")


class _Refused(Exception):
    """The message was not taken; it may be sent again."""
