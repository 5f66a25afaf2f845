"""``superlink keys``: the API keys of a deployment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from superlink.api_keys import ApiKeys, KeyRecord
from superlink.cli.console import fail, notes, output
from superlink.cli.files import console_for_people, write_json
from superlink.cli.options import DEFAULT_PROFILE, ProfileOption, SetOption, StateOption, read_profile, state_of
from superlink.errors import SuperlinkError
from superlink.profile import KeyLimits, Profile
from superlink.redis_connection import connect, redis_url_of
from superlink.stack.redis_server import redis_beside_stack
from superlink.stack.state_folder import StateFolder

Result = TypeVar("Result")

keys = typer.Typer(
    help="Make, list and revoke the API keys of a deployment, which are kept in its Redis.", no_args_is_help=True
)

JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the list; - writes it to standard output.")
]


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who or what the key is for; any words.", show_default=False)],
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, max=100_000, help="0: no limit. Default: the profile's.")
    ] = None,
    concurrent_requests: Annotated[
        int | None, typer.Option(min=0, help="At the same time. 0: no limit. Default: the profile's.")
    ] = None,
    requests_per_day: Annotated[int | None, typer.Option(min=0, help="0: no limit. Default: the profile's.")] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
    state: StateOption = None,
) -> None:
    """Make a key and print it. Nobody can show it again: only a digest is kept.

    Example: superlink keys create "the annotation team" --requests-per-minute 120
    """
    chosen = read_profile(profile, settings)
    gateway = chosen.gateway
    given = {
        "requests_per_minute": requests_per_minute,
        "concurrent_requests": concurrent_requests,
        "requests_per_day": requests_per_day,
    }
    own = {limit: value for limit, value in given.items() if value is not None}
    key, record = _with_keys(chosen, state_of(chosen, state), lambda store: store.create(name, own))
    output.print(key, highlight=False)
    notes.print(
        f"Key {record.id} is not shown again. Clients send it as 'Authorization: Bearer sl_…'.", highlight=False
    )
    if not gateway.keys.required:
        notes.print(f"Profile {escape(profile)} asks nobody for a key yet: set gateway.keys.required.", highlight=False)


@keys.command("list")
def list_keys(
    json_file: JsonOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
    state: StateOption = None,
) -> None:
    """Show all keys with their limits, revoked ones too.

    Example: superlink keys list --json keys.json
    """
    chosen = read_profile(profile, settings)
    gateway = chosen.gateway
    records = _with_keys(chosen, state_of(chosen, state), lambda store: store.all())
    table = Table("id", "name", "created", "a minute", "at a time", "a day", "state")
    for record in records:
        limits = record.limits(gateway.keys.limits)
        counts = (limits.requests_per_minute, limits.concurrent_requests, limits.requests_per_day)
        validity = "valid" if record.revoked_at is None else f"revoked {record.revoked_at:%Y-%m-%d %H:%M}"
        shown = (f"{count:,}" if count else "no limit" for count in counts)
        table.add_row(record.id, escape(record.name), f"{record.created_at:%Y-%m-%d %H:%M}", *shown, validity)
    console_for_people(json_file).print(table)
    write_json(json_file, json.dumps([_document(record, gateway.keys.limits) for record in records], indent=2))


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `superlink keys list` shows it.", show_default=False)],
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
    state: StateOption = None,
) -> None:
    """End a key at once and for good. Requests that are being answered finish.

    Example: superlink keys revoke 4f0c9a1b2c3d4e5f
    """
    chosen = read_profile(profile, settings)
    record = _with_keys(chosen, state_of(chosen, state), lambda store: store.revoke(key_id))
    output.print(f"Key {record.id} ({escape(record.name)}) is revoked.", highlight=False)


def _document(record: KeyRecord, defaults: KeyLimits) -> dict[str, object]:
    """A key as ``--json`` writes it, with the limits that hold for it."""
    return {**record.model_dump(mode="json", exclude={"sha256"}), **record.limits(defaults).model_dump()}


def _with_keys(profile: Profile, state: StateFolder, use: Callable[[ApiKeys], Awaitable[Result]]) -> Result:
    """What ``use`` makes of the deployment's keys; a Redis that does not answer ends the command."""
    named = redis_url_of(profile.gateway)
    with nullcontext(named) if named else redis_beside_stack(state) as url:

        async def run() -> Result:
            async with connect(url) as redis:
                return await use(ApiKeys(redis))

        try:
            return asyncio.run(run())
        except SuperlinkError as error:
            if error.code != "redis_unavailable":
                raise
            fail(f"Redis does not answer: {error.__cause__}")
