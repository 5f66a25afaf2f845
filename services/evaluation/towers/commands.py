"""``superlink eval towers``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superlink.cli.console import fail, notes, output


def evaluate_towers_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs that trained an MLLM.")],
    figure: Annotated[
        list[str] | None, typer.Option(help="A column; repeat for several. Default: every figure that all runs have.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw quality over cost into this PNG or SVG.")] = None,
) -> None:
    """Put quality beside cost: last evaluations of runs, and what the vision towers of their exports cost here.

    A Markdown table; seeds of one recipe share a row. Milliseconds are one thread's own.

    Example: superlink eval towers runs/towers/* --figure answers --chart towers.svg
    """
    # What measures a tower needs torch.
    from services.evaluation.runs_table import RunsTableError
    from services.evaluation.towers.report import tower_rows, towers_table
    from services.runtime.weights import WeightsError

    try:
        rows = tower_rows(runs, figure or ())
    except (RunsTableError, WeightsError) as error:
        fail(str(error))
    output.print(towers_table(rows), markup=False, highlight=False)
    if json_file:
        content = ",\n".join(row.model_dump_json(indent=2) for row in rows)
        json_file.write_text(f"[{content}]\n", encoding="utf-8")
        notes.print(f"Wrote {json_file}")
    if chart:
        from services.evaluation.towers.chart import draw_towers

        draw_towers(chart, rows)
        notes.print(f"Wrote {chart}")
