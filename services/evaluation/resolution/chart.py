"""Accuracy and cost by tiles, as a picture."""

from __future__ import annotations

from pathlib import Path

from services.evaluation.line_chart import Line, Panel, draw_panels
from services.evaluation.resolution.report import ResolutionReport

# What names of data sets end with, and the panel that those share.
_LANGUAGES = {"_en": "English", "_zh": "Chinese"}
_X_LABEL = "most tiles of a picture"


def draw_resolution(file: Path, report: ResolutionReport) -> None:
    """A panel of accuracies a language, or one where no set's name says any, and a panel of seconds."""
    endings = [ending for ending in _LANGUAGES if any(name.endswith(ending) for name in report.sets)]
    panels = [_accuracy(report, _LANGUAGES[ending], ending) for ending in endings] or [_accuracy(report, "Accuracy")]
    seconds = Line("whole answer", [(cost.max_tiles, [cost.seconds]) for cost in report.costs])
    draw_panels(file, [*panels, Panel("Cost", _X_LABEL, "seconds a question", [seconds], report.limits)])


def _accuracy(report: ResolutionReport, title: str, ending: str = "") -> Panel:
    lines = [
        Line(
            name.removesuffix(ending),
            [(limit, [each.accuracy for each in report.of(name, limit)]) for limit in report.limits],
        )
        for name in report.sets
        if name.endswith(ending)
    ]
    return Panel(title, _X_LABEL, "right answers", lines, report.limits)
