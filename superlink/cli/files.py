"""What commands read and write."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from superlink.cli.console import fail, notes, output

# Standard input or output in place of a file.
STANDARD_STREAM = Path("-")


def read_image(image: Path) -> bytes:
    """The file's bytes; a file that cannot be read ends the command."""
    if image == STANDARD_STREAM:
        return sys.stdin.buffer.read()
    try:
        return image.read_bytes()
    except OSError as error:
        fail(f"{image} cannot be read: {error.strerror}.", exit_code=2)


def write_file(file: Path, content: bytes) -> None:
    """Write ``content`` and say so; missing folders are made. A file that cannot be written ends the command."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}.")
    notes.print(f"wrote {file}", highlight=False)


def write_json(file: Path | None, document: str) -> None:
    """What ``--json`` asks for."""
    if file == STANDARD_STREAM:
        output.file.write(f"{document}\n")
    elif file is not None:
        write_file(file, document.encode())


def console_for_people(json_file: Path | None) -> Console:
    """Where tables go: not among JSON that another program reads."""
    return notes if json_file == STANDARD_STREAM else output
