"""``superlink status``: how the stack on this machine, or a gateway elsewhere, fares."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from superlink.cli.console import fail
from superlink.cli.files import console_for_people, write_json
from superlink.cli.options import (
    DEFAULT_PROFILE,
    ProfileOption,
    SetOption,
    StateOption,
    UrlOption,
    gateway_url,
    read_profile,
    state_of,
)
from superlink.profile import Profile
from superlink.stack.processes import describe_bytes
from superlink.stack.state_folder import StateFolder
from superlink.stack.status import ProcessStatus, ServiceReadiness, StackStatus, ask_gateway, status_of_stack

JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the same for programs; - to standard output.")
]


def status(
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
    url: UrlOption = None,
    state: StateOption = None,
    json_file: JsonOption = None,
) -> None:
    """Say how every process of the stack on this machine fares, from any terminal. Exit code 1 unless all is well.

    Of a gateway elsewhere (--url), or one that `superlink up` did not start: which services it finds ready.

    Example: superlink status --json -

    Example: superlink status --url http://127.0.0.1:9000
    """
    chosen = read_profile(profile, settings)
    found = _find(chosen, url, state_of(chosen, state))
    people = console_for_people(json_file)
    people.print(_heading(found), highlight=False)
    people.print(_table_of_processes(found.processes) if found.processes else _table_of_services(found.services))
    for service in found.services if found.processes else ():
        if not service.ready:
            people.print(f"{service.name} is not ready: {escape(service.reason or 'no reason given')}", highlight=False)
    write_json(json_file, found.model_dump_json(indent=2))
    if not found.ready:
        raise typer.Exit(1)


def _find(profile: Profile, url: str | None, state: StateFolder) -> StackStatus:
    report = state.running() if url is None else None
    if report is not None:
        return status_of_stack(report, state)
    address = gateway_url(profile, url)
    services = ask_gateway(address)
    if services is None:
        fail(f"No stack runs in {state.path}, and no gateway answers at {address}. Start one with: superlink up")
    return StackStatus(url=address, ready=all(service.ready for service in services), services=services)


def _heading(found: StackStatus) -> str:
    verdict = "[bold green]ready[/]" if found.ready else "[bold red]not ready[/]"
    if found.state in ("starting", "stopping"):
        verdict = f"[bold yellow]{found.state}[/]"
    if found.uptime_s is None:
        return f"{found.url}: {verdict}"
    since = f"profile {escape(found.profile or '')}, process {found.pid}, for {_duration(found.uptime_s)}"
    return f"{found.url}: {verdict} ({since})"


def _table_of_processes(processes: list[ProcessStatus]) -> Table:
    table = Table("process", "state", "pid", "restarts", "uptime", "memory", "port")
    table.add_column("why", overflow="fold")
    for process in processes:
        table.add_row(
            process.name,
            _state(process),
            str(process.pid or "-"),
            str(process.restarts),
            "-" if process.uptime_s is None else _duration(process.uptime_s),
            _memory(process),
            str(process.port or ("socket" if process.address else "-")),
            escape(_why(process)),
        )
    return table


def _table_of_services(services: list[ServiceReadiness]) -> Table:
    table = Table("service", "state", "why")
    for service in services:
        verdict = "[green]ready[/]" if service.ready else "[red]not ready[/]"
        table.add_row(service.name, verdict, escape(service.reason or ""))
    return table


def _state(process: ProcessStatus) -> str:
    if process.state != "running":
        return f"[red]{process.state}[/]"
    return {True: "[green]ready[/]", False: "[red]not ready[/]", None: "[yellow]running[/]"}[process.ready]


def _why(process: ProcessStatus) -> str:
    if process.reason:
        return process.reason
    return f"last end: {process.last_end}" if process.last_end else ""


def _memory(process: ProcessStatus) -> str:
    held = "?" if process.memory_bytes is None else describe_bytes(process.memory_bytes)
    return f"{held} of {describe_bytes(process.max_memory_bytes)}" if process.max_memory_bytes else held


def _duration(seconds: float) -> str:
    """``"0:03:12"`` or ``"2 days, 0:03:12"``."""
    return str(timedelta(seconds=round(seconds)))
