"""``superlink logs``: what the processes of a stack on this machine write, for people."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated

import typer

from superlink.cli.console import fail, output
from superlink.cli.options import DEFAULT_PROFILE, ProfileOption, SetOption, StateOption, read_profile, state_of
from superlink.log_files import LogFollower, last_lines, readable

POLL_INTERVAL_S = 0.2


def logs(
    processes: Annotated[
        list[str] | None, typer.Argument(metavar="[PROCESS]...", help="Of which. Default: all.", show_default=False)
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines of each.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
    state: StateOption = None,
) -> None:
    """Show what the processes of the stack on this machine log, also after its end.

    Example: superlink logs mllm detection --follow
    """
    folder = state_of(read_profile(profile, settings), state)
    known = sorted(file.stem for file in folder.logs.glob("*.log"))
    if not known:
        fail(f"There are no logs in {folder.logs}. Start a stack with: superlink up")
    strangers = [name for name in processes or () if name not in known]
    if strangers:
        fail(f"No logs of {', '.join(strangers)} in {folder.logs}. There are: {', '.join(known)}.", exit_code=2)
    chosen = [folder.log_file(name) for name in processes or known]
    follower = LogFollower(chosen)
    for log in chosen:
        for line in last_lines(log, lines):
            show(log.stem, line)
    with suppress(KeyboardInterrupt):
        while follow:
            time.sleep(POLL_INTERVAL_S)
            show_new(follower)


def show_new(follower: LogFollower) -> None:
    """Print what was logged since the last time."""
    for name, line in follower.new_lines():
        show(name, line)


def show(name: str, line: str) -> None:
    """Print a line of a process's log."""
    output.print(f"{name:<13}{readable(line)}", markup=False, highlight=False)
