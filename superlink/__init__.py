"""Superlink: a multimodal language model that drives vision tools.

``Client`` and ``AsyncClient`` ask a running gateway. They are loaded on first use, so that the processes of the stack,
which import this package for its contracts, do not pay for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superlink.async_client import AsyncClient
    from superlink.client import Client
    from superlink.errors import SuperlinkError

__all__ = ["AsyncClient", "Client", "SuperlinkError"]

_MODULES = {
    "AsyncClient": "superlink.async_client",
    "Client": "superlink.client",
    "SuperlinkError": "superlink.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'superlink' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
