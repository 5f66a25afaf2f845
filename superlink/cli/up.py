"""``superlink up`` and ``superlink status``: the stack on this machine."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from superlink.cli.console import fail, notes, output
from superlink.cli.options import DEFAULT_PROFILE, ProfileOption, SetOption, UrlOption, gateway_url, read_profile
from superlink.profile import Profile, is_loopback
from superlink.stack import LocalStack, StackEvent

TROUBLE = ("died", "restarting")
STYLE_OF = {"died": "bold red", "ready": "bold green", "restarting": "yellow"}


def up(
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Take any free ports instead of the profile's.")
    ] = False,
    log_folder: Annotated[
        Path | None, typer.Option("--logs", help="Where each process writes its log.", show_default="runs/logs")
    ] = None,
) -> None:
    """Start every process of a profile and leave them running until Ctrl-C.

    A process that dies is reported and started again. Ctrl-C or SIGTERM lets requests in flight finish, then stops all.

    Example: superlink up --set gateway.port=9000
    """
    stack = LocalStack(
        read_profile(profile, settings),
        ports="free" if free_ports else "profile",
        log_folder=log_folder,
    )
    _stop_on_signal(stack)
    with notes.status("Starting") as spinner:
        stack.on_event = lambda event: report(event, spinner)
        stack.start()
    stack.on_event = report
    try:
        output.print(f"Superlink runs at [bold]{stack.url}[/]. Stop it with Ctrl-C.")
        output.print(f"In a browser: {stack.url}/playground", highlight=False)
        if not stack.profile.gateway.keys.required:
            reach = "this machine" if is_loopback(stack.profile.gateway.host) else "the network"
            notes.print(f"No API key is needed: whoever can reach it from {reach} is answered.")
        output.print(f'Try: superlink ask IMAGE "What is here? Show me." --url {stack.url}', highlight=False)
        stack.wait()
        notes.print("Stopping; requests in flight may finish. Ctrl-C again: at once.")
    finally:
        stack.stop()


def status(profile: ProfileOption = DEFAULT_PROFILE, settings: SetOption = None, url: UrlOption = None) -> None:
    """Say whether a stack runs and which of its services are ready. Exit code 1 when it is not ready.

    Example: superlink status --url http://127.0.0.1:9000
    """
    address = gateway_url(read_profile(profile, settings), url)
    try:
        response = httpx.get(f"{address}/readyz", timeout=5.0)
    except httpx.HTTPError:
        fail(f"No gateway answers at {address}. Start one with: superlink up")
    ready = response.status_code == httpx.codes.OK
    table = Table("service", "state", "reason", title=f"{address}: {'ready' if ready else 'not ready'}")
    for service in response.json().get("services", []):
        state = "[green]ready[/]" if service.get("ready") else "[red]not ready[/]"
        table.add_row(service.get("name", "?"), state, escape(service.get("reason") or ""))
    output.print(table)
    if not ready:
        raise typer.Exit(1)


@contextmanager
def stack_for_one_call(profile: Profile) -> Iterator[str]:
    """The URL of a stack on free ports that lives as long as the block; says what it is doing."""
    stack = LocalStack(profile, ports="free")
    # Ctrl-C raises KeyboardInterrupt by itself; these would end this process without a word.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    with notes.status("Starting") as spinner:
        notes.print(f"Starting {', '.join(stack.process_names)}; logs in {stack.log_folder}", highlight=False)
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


def _stop_on_signal(stack: LocalStack) -> None:
    """The first signal asks the stack to stop; a second one ends this process, and the children with it."""

    def request_stop(number: int, _: object) -> None:
        stack.request_stop()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, request_stop)
