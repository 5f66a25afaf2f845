"""What training runs came to, as a chart: a panel a figure, a row a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib
from matplotlib.figure import Figure

from services.evaluation.runs_table import by_recipe

_COLOUR = "#0072b2"
_INCHES_A_PANEL, _INCHES_A_ROW, _INCHES_OF_MARGIN = 3.2, 0.3, 1.0


def draw_runs(file: Path, runs: Sequence[Path], figures: Sequence[str], step: int | None = None) -> None:
    """Write a PNG or SVG, as the file's name ends: dots for the seeds of a recipe, and a line for their mean.

    Raises RunsTableError for a run without the evaluation, or a figure that a run lacks.
    """
    rows, columns = by_recipe(runs, figures, step)
    height = _INCHES_OF_MARGIN + _INCHES_A_ROW * len(rows)
    # Words stay words in SVG, and the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "superlink", "font.size": 9}):
        chart = Figure(figsize=(1.5 + _INCHES_A_PANEL * len(columns), height), layout="constrained")
        panels = chart.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for panel, column in zip(panels, columns, strict=True):
            panel.set_title(column, fontsize=10)
            panel.grid(axis="x", alpha=0.3)
            for place, evaluations in enumerate(rows.values()):
                seeds = [evaluation.figures[column] for evaluation in evaluations]
                panel.plot(seeds, [place] * len(seeds), "o", color=_COLOUR, alpha=0.5, markersize=5)
                panel.plot([mean(seeds)], [place], "|", color=_COLOUR, markersize=14, markeredgewidth=2)
        panels[0].set_yticks(range(len(rows)), list(rows))
        panels[0].invert_yaxis()
        chart.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)
