"""How the processes talk to each other: one set of gRPC options for every server and channel.

Objects of grpc.aio belong to the event loop that made them: open channels inside the running loop, never at import.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

import grpc
from opentelemetry.trace import INVALID_SPAN, Span

from superlink.telemetry import trace_metadata

# Encoded images are 10 MiB at most and a request may hold a few. Both ends must agree, or the smaller limit wins.
MAX_MESSAGE_BYTES = 32 * 1024 * 1024

# Metadata key under which the request id travels through every hop, beside the field of the request.
REQUEST_ID_KEY = "x-request-id"

# How soon a connection is given up whose other end is gone without a word. The server's minimum must lie below the
# client's interval, or it answers the pings with GOAWAY too_many_pings; its default is five minutes.
CLIENT_PING_INTERVAL_MS, PING_TIMEOUT_MS = 10_000, 5_000
SERVER_MIN_PING_INTERVAL_MS = 5_000
# For a connection to be made. gRPC names the option after the backoff, which it does not change; a busy machine needs
# more than the 100 ms that the backoff begins with.
CONNECT_TIMEOUT_MS = 2_000

# Of the hop to the orchestrator, which itself repeats calls to the workers. UNAVAILABLE only: the call did not run, or
# its process died. A call that ran out of time or met a full queue must not be repeated behind the caller's back. A
# stream is only retried before its first message.
SERVICE_CONFIG: dict[str, Any] = {
    # The default, pick_first, sends everything to one of several equal servers.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.2},
}

ChannelOption = tuple[str, Any]


def channel_options() -> list[ChannelOption]:
    """Options of a channel to a service that gRPC itself balances and repeats calls to."""
    return [*_shared_options(), ("grpc.service_config", json.dumps(SERVICE_CONFIG))]


def _shared_options() -> list[ChannelOption]:
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", CLIENT_PING_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # A worker that comes back is used again within a second, not after gRPC's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", 500),
        # Without a policy of the service config these are calls that never left this process.
        ("grpc.enable_retries", 1),
    ]


def server_options() -> list[ChannelOption]:
    """Options of every server."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.http2.min_ping_interval_without_data_ms", SERVER_MIN_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # Ageing makes clients resolve again, so that a new replica gets traffic; gRPC adds 10 % jitter.
        ("grpc.max_connection_age_ms", 120_000),
        ("grpc.max_connection_age_grace_ms", 300_000),
        # With port sharing a second server would start silently on a port that is in use.
        ("grpc.so_reuseport", 0),
    ]


def channel_target(address: str) -> str:
    """The gRPC target of ``host:port``; a name is resolved to all of its addresses, which round_robin needs."""
    return address if "://" in address or address.startswith(("unix:", "dns:")) else f"dns:///{address}"


def open_channel(address: str, options: Iterable[ChannelOption] = ()) -> grpc.aio.Channel:
    """A channel to ``address`` (``host:port``). Connects on first use; later ``options`` win over the shared ones."""
    return grpc.aio.insecure_channel(channel_target(address), options=[*channel_options(), *options])


def open_replica_channel(address: str) -> grpc.aio.Channel:
    """A channel to the one server at ``address``, for callers that choose among servers and repeat calls themselves."""
    # A pool of its own: another channel to the same address must not share the pause before the next connection.
    return grpc.aio.insecure_channel(address, options=[*_shared_options(), ("grpc.use_local_subchannel_pool", 1)])


def new_request_id() -> str:
    """A fresh request id: 32 hex digits, random."""
    return uuid.uuid4().hex


def request_metadata(request_id: str, span: Span = INVALID_SPAN) -> tuple[tuple[str, str], ...]:
    """Call metadata that carries ``request_id`` to the next hop, and the trace where ``span`` is that of the call."""
    return ((REQUEST_ID_KEY, request_id), *trace_metadata(span))


def request_id_of(context: grpc.aio.ServicerContext[Any, Any], request_id: str) -> str:
    """The id of a request at a server: the field, else the metadata, else a fresh one."""
    if request_id:
        return request_id
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return new_request_id()
