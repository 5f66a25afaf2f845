"""Quality of towers against their cost, as a chart: a panel a figure, a mark a tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib
from matplotlib.figure import Figure

from services.evaluation.line_chart import COLOURS
from services.evaluation.towers.report import TowerRow

_INCHES_A_PANEL = (3.6, 3.2)


def draw_towers(file: Path, rows: Sequence[TowerRow]) -> None:
    """Write a PNG or SVG, as the file's name ends: dots for seeds, a line from the least to the greatest."""
    columns = list(rows[0].figures)
    # Words stay words in SVG, and the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "superlink", "font.size": 9}):
        width, height = _INCHES_A_PANEL
        chart = Figure(figsize=(width * len(columns), height), layout="constrained")
        panels = chart.subplots(1, len(columns), squeeze=False)[0]
        for panel, column in zip(panels, columns, strict=True):
            panel.set_title(column, fontsize=10)
            panel.set_xlabel("milliseconds a tile")
            panel.set_xlim(0, 1.15 * max(row.cost.milliseconds for row in rows))
            panel.set_ylim(0, 1)
            panel.grid(alpha=0.3)
            for row, colour in zip(rows, COLOURS, strict=False):
                seeds, cost = row.figures[column], row.cost.milliseconds
                panel.plot([cost] * len(seeds), seeds, "o-", color=colour, alpha=0.5, markersize=5)
                panel.plot([cost], [mean(seeds)], "_", color=colour, markersize=16, markeredgewidth=2, label=row.name)
        panels[0].set_ylabel("right answers")
        panels[0].legend(frameon=False)
        chart.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)
