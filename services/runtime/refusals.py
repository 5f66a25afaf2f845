"""How every worker refuses a request that it may be asked again."""

from __future__ import annotations

import grpc

from superlink.errors import SuperlinkError


def shutting_down() -> SuperlinkError:
    """It came after the end had begun."""
    return SuperlinkError(
        "shutting_down", "The worker is shutting down.", status=grpc.StatusCode.UNAVAILABLE, retry_after_ms=1000
    )


def queued_too_long(max_queue_s: float, retry_after_ms: int) -> SuperlinkError:
    """It has waited for ``max_queue_s``."""
    return SuperlinkError(
        "queued_too_long",
        f"The request waited {max_queue_s:g} s for its turn, which is as long as any may. Try again after the delay.",
        status=grpc.StatusCode.RESOURCE_EXHAUSTED,
        retry_after_ms=retry_after_ms,
    )
