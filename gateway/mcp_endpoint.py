"""``/mcp``: the tools for agents, by streamable HTTP of the Model Context Protocol.

Of the protocol's two ways both are served: since 2026 every request stands for itself, and a client cancels by closing
it; before, a session begins with a handshake, lives in this process, and a client cancels by a notification.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
from fastapi import APIRouter, Request
from mcp.server.context import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.bodies import body_again, read_body, timeout_of
from gateway.calls import call_of
from gateway.deployment import deployment_of
from gateway.mcp_errors import with_problem
from gateway.mcp_platform import OrchestratorPlatform
from superlink.errors import SuperlinkError
from superlink.mcp.server import make_server
from superlink.profile import GatewaySettings

# Handshakes whose clients have not said goodbye; they are forgotten after half an hour without a request.
MAX_SESSIONS = 1000
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 (compared with, not bound)


class McpEndpoint:
    """The path, and the sessions of those who began with a handshake."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._hosts = TransportSecurityMiddleware(_known_hosts(settings))
        self._sessions = StreamableHTTPSessionManager(
            make_server(_platform_of, _images_as(settings)),
            # Larger bodies were refused already.
            max_request_body_size=settings.max_body_bytes,
            max_sessions=MAX_SESSIONS,
        )
        self.router = APIRouter()
        # No GET: its stream would carry what the server says unasked, which is nothing, and would hold up every stop.
        self.router.add_api_route("/mcp", self._answer, methods=["POST", "DELETE"], include_in_schema=False)

    def running(self) -> AbstractAsyncContextManager[None]:
        """What must be entered, once, before the first request."""
        return self._sessions.run()

    async def _answer(self, request: Request) -> Response:
        await self._refuse_unknown_hosts(request)
        body = await read_body(request, timeout_of(request, self._settings.request_timeout_s))
        return _ProtocolAnswer(self._sessions.handle_request, body)

    async def _refuse_unknown_hosts(self, request: Request) -> None:
        """Against DNS rebinding: a web page elsewhere must not reach this gateway through its visitor's browser."""
        if await self._hosts.validate_request(request) is None:
            return
        host, origin = (request.headers.get(name, "") for name in ("host", "origin"))
        raise SuperlinkError(
            "host_refused",
            f"Agents do not reach this gateway under Host {host[:100]!r}{f' from {origin[:100]!r}' if origin else ''}. "
            "Add the name to gateway.mcp_hosts in the profile.",
            status=grpc.StatusCode.PERMISSION_DENIED,
        )


class _ProtocolAnswer(Response):
    """What the protocol's own implementation answers to a request whose body was read."""

    def __init__(self, answer: ASGIApp, body: bytes) -> None:
        super().__init__()
        self._answer = answer
        self._request_body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        send = with_problem(send, scope["state"]["request_id"])
        await self._answer(scope, body_again(self._request_body, receive), send)


def _images_as(settings: GatewaySettings) -> str:
    """How agents may give images."""
    address = ", as an http or https address" if settings.image_urls.enabled else ""
    return (
        f"Give an image as a data URL (data:image/png;base64,…){address} or as the base64 of a JPEG, PNG or WebP file."
    )


def _platform_of(context: ServerRequestContext[Any]) -> OrchestratorPlatform:
    request = context.request
    assert isinstance(request, Request)  # noqa: S101
    deployment = deployment_of(request)
    return OrchestratorPlatform(deployment, call_of(request, deployment.profile.gateway))


def _known_hosts(settings: GatewaySettings) -> TransportSecuritySettings:
    """This machine's own names, the address that is listened on, and those of the profile, each with any port."""
    own = () if settings.host in _EVERY_ADDRESS else (settings.host_in_url,)
    names = [*_LOOPBACK, *own, *settings.mcp_hosts]
    hosts = [entry for name in names for entry in (name, f"{name}:*")]
    return TransportSecuritySettings(
        allowed_hosts=hosts, allowed_origins=[f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts]
    )
