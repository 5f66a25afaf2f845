"""``superlink doctor``: what is missing and how to get it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.markup import escape
from rich.table import Table

from superlink.cli.console import output
from superlink.cli.options import DEFAULT_PROFILE, ProfileOption, SetOption, gateway_url, read_profile
from superlink.doctor import examine
from superlink.profile import Profile

SIGNS = {"ok": "[green]ok[/]", "optional": "[yellow]optional[/]", "missing": "[bold red]missing[/]"}


def doctor(
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the findings to this file.")] = None,
) -> None:
    """Look at Python, packages, weights, ports, Redis, sprites and memory; say what is missing and how to get it.

    Exit code 1 when something that the stack needs is missing. "optional" only matters for some commands.

    Redis is the one that the profile or SUPERLINK_REDIS_URL names; where neither does, one comes along with the stack.

    Example: superlink doctor --profile tiny

    Example: superlink doctor --set gateway.redis_url=redis://127.0.0.1:6379/0
    """
    chosen = read_profile(profile, settings)
    findings = examine(chosen, _running_stack(chosen))
    table = Table("what", "state", title=f"Profile {chosen.name}")
    table.add_column("found", overflow="fold")
    table.add_column("how to get it", overflow="fold")
    for finding in findings:
        table.add_row(finding.topic, SIGNS[finding.state], escape(finding.text), escape(finding.remedy))
    output.print(table)
    if json_file is not None:
        content = [dataclasses.asdict(finding) for finding in findings]
        json_file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    missing = [finding.topic for finding in findings if finding.state == "missing"]
    if missing:
        output.print(f"[bold red]Missing:[/] {', '.join(missing)}")
        raise typer.Exit(1)
    output.print("Everything that the stack needs is here. Start it with: superlink up")


def _running_stack(profile: Profile) -> str | None:
    """Where a stack of this profile answers already, or None."""
    url = gateway_url(profile, None)
    try:
        httpx.get(f"{url}/healthz", timeout=1.0).raise_for_status()
    except httpx.HTTPError:
        return None
    return url
