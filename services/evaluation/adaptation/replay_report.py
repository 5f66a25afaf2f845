"""The replay study as a table and as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.table import Column, Table

from services.evaluation.adaptation.replay_study import ReplayResult


def replay_table(results: Sequence[ReplayResult]) -> Table:
    """A row a domain and ratio: means over seeds, and standard deviations."""
    numbers = ("replay", "seeds", "domain before", "domain after", "general before", "general after", "s")
    table = Table(Column("domain", overflow="fold"), *numbers)
    for domain in _domains(results):
        for ratio in _ratios(results):
            own = [result for result in results if (result.domain, result.ratio) == (domain, ratio)]
            if own:
                columns = ("domain_before", "domain_after", "general_before", "general_after")
                cells = [_spread([getattr(result, column) for result in own]) for column in columns]
                seconds = f"{mean(result.seconds for result in own):.0f}"
                table.add_row(_short(domain), f"{ratio:g}", str(len(own)), *cells, seconds)
    return table


def draw_replay(results: Sequence[ReplayResult], file: Path) -> None:
    """Accuracy over the ratio, on the domains and on general data: the mean of seeds, and from lowest to highest."""
    # The table does without it.
    from services.evaluation.line_chart import Line, Panel, draw_panels

    def lines(column: str) -> list[Line]:
        return [
            Line(
                _short(domain),
                [
                    (ratio, [getattr(result, column) for result in results if _is(result, domain, ratio)])
                    for ratio in _ratios(results)
                    if any(_is(result, domain, ratio) for result in results)
                ],
            )
            for domain in _domains(results)
        ]

    axis = "general rows for each of the domain"
    before = mean(result.general_before for result in results)
    draw_panels(
        file,
        [
            Panel("On its domain, after adapting", axis, "right answers", lines("domain_after")),
            Panel(f"On general data (before: {before:.2f})", axis, "right answers", lines("general_after")),
        ],
    )


def _is(result: ReplayResult, domain: str, ratio: float) -> bool:
    return (result.domain, result.ratio) == (domain, ratio)


def _domains(results: Sequence[ReplayResult]) -> list[str]:
    return list(dict.fromkeys(result.domain for result in results))


def _ratios(results: Sequence[ReplayResult]) -> list[float]:
    return sorted({result.ratio for result in results})


def _short(name: str) -> str:
    """The recipe "adaptation/tiny_aerial" as "aerial"."""
    return name.rpartition("/")[2].removeprefix("tiny_")


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" if len(values) == 1 else f"{mean(values):.3f} ± {stdev(values):.3f}"
