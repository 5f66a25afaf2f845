"""A client for the gateway that a command's options name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from superlink.cli.console import fail
from superlink.cli.options import gateway_url, read_profile
from superlink.cli.up import stack_for_one_call
from superlink.client import Client


@contextmanager
def connected_client(
    *,
    profile: str,
    settings: list[str] | None,
    url: str | None,
    start: bool,
    api_key: str | None,
    timeout_s: float,
) -> Iterator[Client]:
    """A client of the gateway to ask; with ``--start`` of one that lives as long as the block."""
    chosen = read_profile(profile, settings)
    if not start:
        with Client(gateway_url(chosen, url), api_key=api_key, timeout_s=timeout_s) as client:
            yield client
        return
    if url is not None:
        fail("--start starts a stack of its own; leave out --url (and SUPERLINK_URL).", exit_code=2)
    with stack_for_one_call(chosen) as address, Client(address, api_key=api_key, timeout_s=timeout_s) as client:
        yield client
