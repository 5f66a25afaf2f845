"""``superlink eval domain``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from services.evaluation.adaptation.benchmarks import BENCHMARKS, PredictionsError, judge_file
from superlink.cli.console import fail, output


def judge_domain_command(
    benchmark: Annotated[str, typer.Argument(help=f"One of {', '.join(BENCHMARKS)}.")],
    predictions: Annotated[
        Path, typer.Argument(help="A JSONL file, a line an answer; docs/adaptation.md has the keys.")
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Judge a model's answers on a benchmark of driving, remote sensing or medicine, as the published tables do.

    Example: superlink eval domain rsvqa answers.jsonl --json figures.json
    """
    if benchmark not in BENCHMARKS:
        fail(f"No benchmark {benchmark!r}. There are: {', '.join(BENCHMARKS)}.", exit_code=2)
    try:
        figures = asdict(judge_file(benchmark, predictions))
    except PredictionsError as error:
        fail(str(error))
    table = Table("figure", "value")
    for name, value in _flat(figures):
        table.add_row(name, value)
    output.print(table)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested figures as lines: ("speed.rmse", "1.280")."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines.extend(_flat(value, f"{prefix}{name}."))
        elif isinstance(value, tuple):
            lines.append((f"{prefix}{name}", ", ".join(f"{entry:.4f}" for entry in value)))
        else:
            lines.append((f"{prefix}{name}", "" if value is None else f"{value:.4f}".removesuffix(".0000")))
    return lines
