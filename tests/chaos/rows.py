"""What chaos found: rows of one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

# Hears what is being done.
Tell = Callable[[str], None]


class Row(BaseModel):
    """One promise, and what came of it."""

    scenario: str
    # What was done to the stack.
    done: str
    promise: str
    measured: str
    # None: it could not be tried on this machine.
    holds: bool | None
    # The numbers behind ``measured``.
    figures: dict[str, float | int | str] = {}


class ChaosReport(BaseModel):
    """What ``make chaos`` writes."""

    cores: int
    seconds: float
    rows: list[Row]


def table_of(rows: Sequence[Row]) -> Table:
    """For people."""
    table = Table(show_lines=True)
    for name in ("scenario", "what was done", "promise", "measured", "holds"):
        table.add_column(name, overflow="fold")
    for row in rows:
        verdict = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: "[yellow]not tried[/]"}[row.holds]
        table.add_row(*(escape(text) for text in (row.scenario, row.done, row.promise, row.measured)), verdict)
    return table


def write_report(file: Path, report: ChaosReport) -> None:
    """For programs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank; 0 of nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))] if ranked else 0.0
