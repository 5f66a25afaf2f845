"""What the work for a request needs of it, whichever protocol it came by."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastapi import Request

from gateway.bodies import timeout_of
from gateway.problems import request_id_of
from superlink.deadlines import hop_timeout_s
from superlink.profile import GatewaySettings

# Whose files and idempotency keys they are where nobody needs an API key.
ANYONE = "anyone"


@dataclass(frozen=True)
class Call:
    """A request's identity and deadline."""

    request_id: str
    # The id of the API key.
    owner: str
    # When it came in, by ``perf_counter``.
    started: float
    timeout_s: float

    def left_s(self) -> float:
        """Seconds until the deadline; always some, because who runs out of time says where it went."""
        return max(self.timeout_s - (time.perf_counter() - self.started), 0.001)

    def hop_s(self) -> float:
        """What the next hop may take of it, so that its failure can still be told."""
        return max(hop_timeout_s(self.left_s()), 0.001)


def call_of(request: Request, settings: GatewaySettings) -> Call:
    """The call that ``request`` makes. Raises what ``timeout_of`` raises."""
    timeout_s = timeout_of(request, settings.request_timeout_s)
    return Call(request_id_of(request), owner_of(request), request.state.started, timeout_s)


def owner_of(request: Request) -> str:
    """The id of the API key that ``request`` came with."""
    return str(getattr(request.state, "api_key_id", ANYONE))
