"""The ``superlink`` command: its own commands, and those of the rooms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import typer
from rich.markup import escape

from superlink.cli.ask import ask
from superlink.cli.batch import batch
from superlink.cli.console import notes
from superlink.cli.demo import demo
from superlink.cli.doctor import doctor
from superlink.cli.find import detect, pose, segment
from superlink.cli.generate import edit, generate
from superlink.cli.logs import logs
from superlink.cli.rooms import add_room_commands, missing_extra_message, room_commands
from superlink.cli.status import status
from superlink.cli.up import up
from superlink.configuration import ConfigurationError
from superlink.errors import SuperlinkError
from superlink.stack import StackError

OWN_COMMANDS: dict[str, Callable[..., None] | typer.Typer] = {
    "up": up,
    "status": status,
    "logs": logs,
    "ask": ask,
    "detect": detect,
    "segment": segment,
    "generate": generate,
    "edit": edit,
    "pose": pose,
    "batch": batch,
    "demo": demo,
    "doctor": doctor,
}
CONFIGURATION_EXIT_CODE = 2


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The command for these arguments. Rooms are only loaded when their command, or the list of all, is asked for."""
    app = typer.Typer(
        name="superlink",
        help="A multimodal language model that drives vision tools. Start with: superlink doctor, then superlink up.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, command in OWN_COMMANDS.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    if not arguments or arguments[0] not in OWN_COMMANDS:
        rooms = room_commands()
        # Some bring torch along, which takes seconds; an agent that starts `superlink mcp` waits for it.
        asked = [entry for entry in rooms if entry.name in arguments[:1]]
        add_room_commands(app, asked or rooms)
    return app


def main() -> None:
    """Run the command; expected failures end with one clear message instead of a traceback."""
    arguments = sys.argv[1:]
    try:
        build_app(arguments)()
    except ConfigurationError as error:
        _report(str(error))
        sys.exit(CONFIGURATION_EXIT_CODE)
    except (StackError, SuperlinkError) as error:
        _report(str(error))
        sys.exit(1)
    except ModuleNotFoundError as error:
        entry = next((entry for entry in room_commands() if arguments and entry.name == arguments[0]), None)
        if entry is None:
            raise
        _report(missing_extra_message(entry, error))
        sys.exit(1)


def _report(message: str) -> None:
    notes.print(f"[bold red]error:[/] {escape(message)}", highlight=False)


if __name__ == "__main__":
    main()
