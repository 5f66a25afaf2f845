"""Where the gateway is, the key for it, and how long and how often to try: arguments first, then the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from superlink.configuration import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "SUPERLINK_URL"
API_KEY_VARIABLE = "SUPERLINK_API_KEY"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_RETRIES = 3


@dataclass(frozen=True)
class ConnectionSettings:
    """What a client is made of."""

    # Without a slash at the end.
    url: str
    # Of the whole call, attempts and the pauses between them included.
    timeout_s: float
    # Attempts after the first.
    max_retries: int
    # Of every request; they hold the API key.
    headers: httpx.Headers = field(repr=False)


def connection_settings(
    url: str | None, api_key: str | None, timeout_s: float, max_retries: int, headers: Mapping[str, str] | None
) -> ConnectionSettings:
    """Arguments that are None are taken from the environment, then from the defaults.

    Raises ConfigurationError for an address or a key that cannot be one.
    """
    address = (url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
    _check_address(address)
    # Files and secret stores tend to add a line end.
    key = (api_key or os.environ.get(API_KEY_VARIABLE) or "").strip()
    sent = httpx.Headers()
    if key:
        # The key itself is not shown: messages end up in logs.
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigurationError(
                f"The API key (api_key, --api-key or {API_KEY_VARIABLE}) has characters that no key has. "
                "Was it copied in full, and without quotes?"
            )
        sent["authorization"] = f"Bearer {key}"
    sent.update(headers or {})
    return ConnectionSettings(address, timeout_s, max_retries, sent)


def _check_address(address: str) -> None:
    try:
        parsed = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{address!r} is no address of a gateway: {error}.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigurationError(
            f"{address!r} is no address of a gateway. It begins with http:// or https://, like {DEFAULT_URL} "
            f"(url, --url or {URL_VARIABLE})."
        )
