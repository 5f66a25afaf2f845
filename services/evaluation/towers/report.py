"""Quality and cost of towers, a row each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

from pydantic import BaseModel

from services.evaluation.runs_table import LOG_FILE, RunsTableError, by_recipe, recipe_of
from services.mllm.tower_cost import TowerCost, measure_costs


class TowerRow(BaseModel):
    """Runs of one recipe that differ in their seed."""

    name: str
    # By their name, one value a seed.
    figures: dict[str, list[float]]
    cost: TowerCost
    # Wall clock, as the logs tell it: evaluations left out.
    seconds_a_step: float


def tower_rows(runs: Sequence[Path], figures: Sequence[str]) -> list[TowerRow]:
    """A row for each recipe in ``runs``, whose exports are measured.

    Raises RunsTableError for runs without evaluation, figure or training time, and WeightsError for exports.
    """
    evaluations, columns = by_recipe(runs, figures)
    by_name: dict[str, list[Path]] = {}
    for run in runs:
        by_name.setdefault(recipe_of(run), []).append(run)
    costs = measure_costs({name: own[0] / "export" for name, own in by_name.items()})
    return [
        TowerRow(
            name=name,
            figures={column: [each.figures[column] for each in evaluations[name]] for column in columns},
            cost=costs[name],
            seconds_a_step=median(_seconds_a_step(run) for run in own),
        )
        for name, own in by_name.items()
    ]


def towers_table(rows: Sequence[TowerRow]) -> str:
    """A Markdown table: means of the seeds, with the least and the greatest."""
    columns = list(rows[0].figures)
    costs = ("parameters", "M MACs", "tokens", "ms a tile", "s a step")
    header = ["tower", "seeds", *columns, *costs]
    lines = [_line(header), _line(["---"] * len(header))]
    for row in rows:
        quality = [f"{mean(seeds):.3f} ({min(seeds):.3f}–{max(seeds):.3f})" for seeds in row.figures.values()]
        cost = [f"{row.cost.parameters:,}", f"{row.cost.mega_macs:.1f}", str(row.cost.tokens)]
        times = [f"{row.cost.milliseconds:.2f}", f"{row.seconds_a_step:.2f}"]
        lines.append(_line([row.name, str(len(row.figures[columns[0]])), *quality, *cost, *times]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _seconds_a_step(run: Path) -> float:
    """The median over the stretches between two lines of a run's log, of which few hold an evaluation."""
    lines = [json.loads(line) for line in (run / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    losses = [line for line in lines if line["kind"] == "loss"]
    rates = [
        (later["seconds"] - earlier["seconds"]) / (later["step"] - earlier["step"])
        for earlier, later in zip(losses, losses[1:], strict=False)
        # A resumed run's clock begins anew.
        if later["seconds"] > earlier["seconds"] and later["step"] > earlier["step"]
    ]
    if not rates:
        raise RunsTableError(f"{run / LOG_FILE}: this run is too short to tell how long a step takes.")
    return float(median(rates))
