"""Commands that the other rooms register as entry points of the group ``superlink.commands``.

The name of the entry point is the command, its value a typer app or a function, and its extra (``[trainer]``) is what
a user installs when the room's packages are missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

import typer

from superlink.cli.console import fail

GROUP = "superlink.commands"


def room_commands() -> tuple[EntryPoint, ...]:
    """The registered commands by name."""
    return tuple(sorted(entry_points(group=GROUP), key=lambda entry: entry.name))


def add_room_commands(app: typer.Typer, entries: Iterable[EntryPoint]) -> None:
    """Add every command; one that cannot be imported becomes a command that says what to install."""
    for entry in entries:
        try:
            command = entry.load()
        except ImportError as error:
            _add_placeholder(app, entry, error)
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name)(command)


def missing_extra_message(entry: EntryPoint, error: ImportError) -> str:
    """What to install so that ``entry`` works."""
    extra = ",".join(entry.extras) or "all"
    return (
        f"`superlink {entry.name}` needs the extra {extra!r} ({error}). "
        f"Install it with: pip install -c constraints.txt -e '.[{extra}]'"
    )


def _add_placeholder(app: typer.Typer, entry: EntryPoint, error: ImportError) -> None:
    message = missing_extra_message(entry, error)

    def explain() -> None:
        fail(message)

    app.command(
        entry.name,
        help=f"Not available: needs the extra {','.join(entry.extras) or 'all'!r}.",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(explain)
