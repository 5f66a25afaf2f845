"""What training runs came to: the evaluations in their logs, as one Markdown table."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LOG_FILE = "log.jsonl"
# What `superlink train --seed N` calls a run, less the name of its recipe.
_SEED = re.compile(r"_seed\d+$")
# What an evaluation's line says beside its figures.
_NO_FIGURES = {"step", "kind", "seconds"}


class RunsTableError(Exception):
    """A run has no such evaluation or no such figure. The text says what there is."""


@dataclass(frozen=True)
class Evaluation:
    """One line of a run's log."""

    step: int
    # Since the run was started or resumed.
    seconds: float
    figures: dict[str, float]


def read_evaluation(run: Path, step: int | None = None) -> Evaluation:
    """The last evaluation in the log of ``run``, or the one after ``step`` steps.

    Raises RunsTableError when there is none.
    """
    log = run / LOG_FILE
    if not log.is_file():
        raise RunsTableError(f"{log}: there is no such file. Name folders that `superlink train` wrote: runs/NAME.")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    # By step, so that what was evaluated again after a resumption counts once.
    found = {int(line["step"]): line for line in lines if line["kind"] == "evaluation"}
    if not found:
        raise RunsTableError(f"{log}: this run has not been evaluated yet.")
    wanted = max(found) if step is None else step
    if wanted not in found:
        raise RunsTableError(
            f"{log}: there is no evaluation after {wanted} steps, but after {', '.join(map(str, sorted(found)))}."
        )
    line = found[wanted]
    figures = {name: float(value) for name, value in line.items() if name not in _NO_FIGURES}
    return Evaluation(wanted, float(line["seconds"]), figures)


def recipe_of(run: Path) -> str:
    """The last part of the name of the recipe that ``run`` trained by."""
    return _SEED.sub("", run.name)


def by_recipe(
    runs: Sequence[Path], figures: Sequence[str] = (), step: int | None = None
) -> tuple[dict[str, list[Evaluation]], list[str]]:
    """The evaluations of ``runs`` by the name of their recipe, one a seed; and ``figures``, or all that every run has.

    Raises RunsTableError for a run without the evaluation, or a figure that a run lacks.
    """
    rows: dict[str, list[Evaluation]] = {}
    for run in runs:
        rows.setdefault(recipe_of(run), []).append(read_evaluation(run, step))
    everything = [evaluation for evaluations in rows.values() for evaluation in evaluations]
    common = [name for name in everything[0].figures if all(name in other.figures for other in everything)]
    missing = [name for name in figures if name not in common]
    if missing:
        raise RunsTableError(f"Not all runs have the figures {', '.join(missing)}. They have: {', '.join(common)}.")
    return rows, list(figures) or common


def runs_table(runs: Sequence[Path], figures: Sequence[str] = (), step: int | None = None) -> str:
    """A Markdown table with a row a run and a column a figure; without ``figures`` all that every run has.

    Runs that differ in their seed alone share a row: the mean, with the least and the greatest value in brackets.
    Raises RunsTableError for a run without the evaluation, or a figure that a run lacks.
    """
    rows, columns = by_recipe(runs, figures, step)
    lines = [_row(["run", "seeds", "steps", "minutes", *columns]), _row(["---"] * (len(columns) + 4))]
    for name, evaluations in rows.items():
        steps = sorted({evaluation.step for evaluation in evaluations})
        minutes = sum(evaluation.seconds for evaluation in evaluations) / len(evaluations) / 60
        cells = [_spread([evaluation.figures[column] for evaluation in evaluations]) for column in columns]
        lines.append(_row([name, str(len(evaluations)), "–".join(map(str, steps)), f"{minutes:.1f}", *cells]))
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}–{max(values):.3f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
