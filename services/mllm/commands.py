"""``superlink convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from superlink.cli.console import output


def convert_command(
    source: Annotated[Path, typer.Argument(help="Folder of an InternVL checkpoint, in either layout.")],
    target: Annotated[Path, typer.Argument(help="New folder for the other layout.")],
) -> None:
    """Rewrite a public InternVL checkpoint: its authors' layout as transformers' (*-hf), or that one as the authors'.

    Nothing is computed: tensors stay bit for bit what they were, so that converting back gives the same ones. There is
    no need to convert a checkpoint to serve it; mllm.weights takes both layouts.

    Example: superlink convert ~/InternVL2-1B ~/InternVL2-1B-hf
    """
    # Seconds of imports, which no other command should wait for.
    from services.mllm.conversion import convert

    converted = convert(source, target)
    output.print(
        f"{escape(str(target))}: {converted.layout} layout, {converted.parameters:,} parameters, "
        f"prompt template {converted.template}.",
        highlight=False,
    )
