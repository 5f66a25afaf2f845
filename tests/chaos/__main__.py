"""``python -m tests.chaos``: what becomes of a stack that is killed, cut off, flooded and starved; ``make chaos``."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from superlink.cli.console import fail, notes, output
from tests.chaos.rows import ChaosReport, Row, table_of, write_report
from tests.chaos.scenarios import SCENARIOS, Stage
from tests.chaos.soak import MINUTES

TABLE_WIDTH = 150


def main(
    scenario: Annotated[
        list[str] | None, typer.Option(help=f"Only this one; may be given again. One of {', '.join(SCENARIOS)}.")
    ] = None,
    soak_minutes: Annotated[float, typer.Option(min=1, help="How long the soak lasts.")] = MINUTES,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Start stacks of profile tiny, do to them what happens to machines, and print what was promised and what held.

    Exit status: 0 when all held, 1 when something did not. Takes about 50 minutes on two cores.
    """
    for name in scenario or ():
        if name not in SCENARIOS:
            fail(f"There is no scenario {name!r}. There are: {', '.join(SCENARIOS)}.", 2)
    # So that the stacks are stopped and the small disk is unmounted.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="superlink-chaos-"))
    rows: list[Row] = []
    for name in scenario or SCENARIOS:
        rows += _play(name, folder / name, soak_minutes)
    # A file has no width.
    output.width = max(output.width, TABLE_WIDTH)
    output.print(table_of(rows))
    if json_file is not None:
        seconds = round(time.monotonic() - began, 1)
        write_report(json_file, ChaosReport(cores=os.cpu_count() or 1, seconds=seconds, rows=rows))
    broken = sum(row.holds is False for row in rows)
    if broken:
        notes.print(f"[bold red]{broken} of {len(rows)} promises did not hold.[/] Logs: {folder}")
        raise typer.Exit(1)
    shutil.rmtree(folder, ignore_errors=True)
    held = sum(row.holds is True for row in rows)
    notes.print(f"[bold green]{held} of {len(rows)} promises held[/], {len(rows) - held} could not be tried.")


def _play(name: str, folder: Path, soak_minutes: float) -> list[Row]:
    """The rows of one scenario; one that ends in an exception has broken its promise."""
    with notes.status(name) as spinner:
        stage = Stage(folder, lambda text: spinner.update(f"{name}: {text}"), soak_minutes)
        began = time.monotonic()
        try:
            rows = asyncio.run(SCENARIOS[name](stage))
        except Exception as error:
            notes.print_exception()
            rows = [Row(scenario=name, done="", promise="it plays to its end", measured=repr(error), holds=False)]
    for row in rows:
        if row.holds is False:
            notes.print(f"[bold red]does not hold[/]: {escape(row.done)}: {escape(row.measured)}", highlight=False)
    held = sum(row.holds is True for row in rows)
    notes.print(f"{name}: {held} of {len(rows)} hold, {time.monotonic() - began:.0f} s", highlight=False)
    return rows


if __name__ == "__main__":
    typer.run(main)
