"""Line charts of repeated measurements: the mean of the seeds, and a band from the lowest to the highest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import matplotlib
from matplotlib.figure import Figure

# Okabe and Ito's colours, which people tell apart whatever colours they see.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_INCHES_A_PANEL = (4.2, 3.4)
# From a point to the next line's at the same name, where names are 1 apart.
_SIDE_BY_SIDE = 0.12


@dataclass(frozen=True)
class Line:
    """One line of a chart: at every x the values of all seeds."""

    name: str
    points: Sequence[tuple[float, Sequence[float]]]


@dataclass(frozen=True)
class Panel:
    """One chart.

    ``ticks``: where the x axis has a number; it is then scaled by their order of magnitude. ``names``: what stands at
    0, 1, 2 … of it; points are then not joined, and those of several lines stand side by side.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    ticks: Sequence[float] = ()
    names: Sequence[str] = ()


def draw_panels(file: Path, panels: Sequence[Panel]) -> None:
    """Write the panels side by side into a PNG or SVG, as the file's name ends."""
    # Words stay words in SVG, and the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "superlink", "font.size": 9}):
        figure = Figure(figsize=(_INCHES_A_PANEL[0] * len(panels), _INCHES_A_PANEL[1]), layout="constrained")
        for place, panel in enumerate(panels, 1):
            axes = figure.add_subplot(1, len(panels), place)
            axes.set_title(panel.title, fontsize=10)
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            axes.grid(alpha=0.3)
            for number, (line, colour) in enumerate(zip(panel.lines, COLOURS, strict=False)):
                means = [mean(seeds) for _, seeds in line.points]
                lowest, highest = ([pick(seeds) for _, seeds in line.points] for pick in (min, max))
                if panel.names:
                    places = [x + _SIDE_BY_SIDE * number for x, _ in line.points]
                    axes.plot(places, means, "o", color=colour, label=line.name)
                    axes.vlines(places, lowest, highest, color=colour, alpha=0.5)
                    continue
                places = [x for x, _ in line.points]
                axes.plot(places, means, "o-", color=colour, label=line.name)
                axes.fill_between(places, lowest, highest, color=colour, alpha=0.2, linewidth=0)
            if panel.names:
                axes.set_xticks(range(len(panel.names)), panel.names)
                axes.set_ylim(0, 1.1 * axes.dataLim.y1)
            if panel.ticks:
                axes.set_xscale("log")
                axes.set_xticks(list(panel.ticks), [f"{tick:g}" for tick in panel.ticks], minor=False)
                axes.minorticks_off()
            axes.legend(frameon=False)
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)
