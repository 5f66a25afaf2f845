"""``superlink up``: the stack on this machine, until it is told to stop or for one call of another command."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.markup import escape
from rich.status import Status

from superlink.cli.console import notes, output
from superlink.cli.logs import POLL_INTERVAL_S, show_new
from superlink.cli.options import DEFAULT_PROFILE, ProfileOption, SetOption, StateOption, read_profile
from superlink.log_files import LogFollower
from superlink.profile import Profile, is_loopback
from superlink.stack import LocalStack, StackEvent
from superlink.stack.state_folder import default_state_folder

TROUBLE = ("died", "draining", "restarting")
STYLE_OF = {"died": "bold red", "draining": "yellow", "ready": "bold green", "restarting": "yellow"}


def up(
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Take any free ports instead of the profile's.")
    ] = False,
    state: StateOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Also show what the processes log.")] = False,
) -> None:
    """Start every process of a profile and leave them running until Ctrl-C.

    Where nothing names a Redis, one is started with them and keeps what it holds for the next time. A process that dies
    is reported and started again. Ctrl-C or SIGTERM lets requests in flight finish, then stops all.

    Example: superlink up --set gateway.port=9000
    """
    stack = LocalStack(read_profile(profile, settings), ports="free" if free_ports else "profile", state_folder=state)
    _stop_on_signal(stack)
    with notes.status("Starting") as spinner:
        stack.on_event = lambda event: report(event, spinner)
        stack.start()
    stack.on_event = report
    follower = LogFollower([stack.log_file(name) for name in stack.process_names] if follow else ())
    try:
        output.print(f"Superlink runs at [bold]{stack.url}[/]. Stop it with Ctrl-C.")
        output.print(f"In a browser: {stack.url}/playground", highlight=False)
        if not stack.profile.gateway.keys.required:
            reach = "this machine" if is_loopback(stack.profile.gateway.host) else "the network"
            notes.print(f"No API key is needed: whoever can reach it from {reach} is answered.")
        output.print(f'Try: superlink ask IMAGE "What is here? Show me." --url {stack.url}', highlight=False)
        output.print(f"In another terminal: superlink status{_state_option(stack)}", highlight=False)
        while not stack.wait(POLL_INTERVAL_S):
            show_new(follower)
        notes.print("Stopping; requests in flight may finish. Ctrl-C again: at once.")
    finally:
        stack.stop()


@contextmanager
def stack_for_one_call(profile: Profile) -> Iterator[str]:
    """The URL of a stack on free ports that lives as long as the block; says what it is doing."""
    stack = LocalStack(profile, ports="free")
    # Ctrl-C raises KeyboardInterrupt by itself; these would end this process without a word.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    with notes.status("Starting") as spinner:
        notes.print(f"Starting {', '.join(stack.process_names)}; logs in {stack.state.logs}", highlight=False)
        stack.on_event = lambda event: report(event, spinner, only_trouble=True)
        stack.start()
    stack.on_event = lambda event: report(event, only_trouble=True)
    try:
        yield stack.url
    finally:
        notes.print("Stopping the stack")
        stack.stop()


def report(event: StackEvent, spinner: Status | None = None, only_trouble: bool = False) -> None:
    """One line an event; what is waited for goes to the spinner where there is one."""
    if event.kind == "waiting" and spinner is not None:
        spinner.update(f"Starting: {escape(event.text)}")
        if notes.is_terminal:
            return
    if only_trouble and event.kind not in TROUBLE:
        return
    style = STYLE_OF.get(event.kind, "dim")
    notes.print(f"[{style}]{event.process:<13}{event.kind:<11}[/] {escape(event.text)}", highlight=False)


def _state_option(stack: LocalStack) -> str:
    """How other commands find the stack, where it is not where they look by themselves."""
    folder = stack.state.path
    return "" if folder == default_state_folder(stack.profile).path else f" --state {shlex.quote(str(folder))}"


def _stop_on_signal(stack: LocalStack) -> None:
    """The first signal asks the stack to stop; a second one ends this process, and the children with it."""

    def request_stop(number: int, _: object) -> None:
        stack.request_stop()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, request_stop)
