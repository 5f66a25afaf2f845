"""Where the command writes: results to standard output, everything about the run to standard error."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

output = Console(soft_wrap=True)
notes = Console(stderr=True, soft_wrap=True)


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """End the command with a message that says what to do."""
    notes.print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(exit_code)
