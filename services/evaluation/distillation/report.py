"""The distillation study as a table and as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.table import Table

from services.evaluation.distillation.study import SMALL_RUNS, RunName, RunResult

_NAMES: dict[RunName, str] = {
    "large": "large",
    "taught": "small, distilled tower",
    "untaught": "small, new tower",
    "large_domain": "large, adapted",
    "taught_domain": "small, distilled tower, adapted",
}
# Kinds of questions about the pictures.
_KINDS = ("naming", "colour")


def study_table(results: Sequence[RunResult]) -> Table:
    """A row a model: mean shares of right answers over seeds, and standard deviations."""
    table = Table("model", "labelled", "seeds", "parameters", "right", *_KINDS, "s")
    for run, name in _NAMES.items():
        for labelled in sorted({result.labelled for result in _of(results, run)}):
            own = [result for result in _of(results, run) if result.labelled == labelled]
            kinds = [spread([each.figures[kind] for each in own]) if kind in own[0].figures else "" for kind in _KINDS]
            right = spread([each.answers for each in own])
            seconds = f"{mean(each.seconds for each in own):.0f}"
            table.add_row(name, str(labelled), str(len(own)), f"{own[0].parameters:,}", right, *kinds, seconds)
    return table


def conclusions(results: Sequence[RunResult]) -> list[str]:
    """What the study is about, as sentences: the teacher's agreement, and what the small model keeps of the large."""
    sentences = []
    towers = _of(results, "tower")
    if towers:
        sentences.append(
            f"Distilled towers ({towers[0].parameters:,} parameters): cosine similarity on held-out pictures "
            f"{spread([each.figures['cosine'] for each in towers])}."
        )
    for small, large, where in (
        ("taught", "large", "the pictures"),
        ("taught_domain", "large_domain", "the adapted domain"),
    ):
        shares, sizes = _kept(results, small, large)
        if shares:
            sentences.append(
                f"With {mean(sizes):.1%} of the large model's parameters the small one keeps {spread(shares)} of its "
                f"score on {where}, at least {min(shares):.3f}."
            )
    return sentences


def draw_study(results: Sequence[RunResult], file: Path) -> None:
    """Right answers over labelled pictures: the mean of seeds, and from lowest to highest."""
    # The table does without it.
    from services.evaluation.line_chart import Line, Panel, draw_panels

    counts = sorted({result.labelled for result in results})
    lines = [
        Line(
            _NAMES[run],
            [
                (count, [each.answers for each in _of(results, run) if each.labelled == count])
                for count in counts
                if any(each.labelled == count for each in _of(results, run))
            ],
        )
        for run in SMALL_RUNS
    ]
    large = [each.answers for each in _of(results, "large")]
    lines.append(Line(f"large, {max(counts)} labelled", [(count, large) for count in counts]))
    draw_panels(file, [Panel("Held-out pictures", "labelled pictures", "right answers", lines, counts)])


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.3f}" if len(values) == 1 else f"{mean(values):.3f} ± {stdev(values):.3f}"


def _of(results: Sequence[RunResult], run: str) -> list[RunResult]:
    return [result for result in results if result.run == run]


def _kept(results: Sequence[RunResult], small: str, large: str) -> tuple[list[float], list[float]]:
    """For every seed that has both, learned from equally many labels: shares of the score, and of the parameters."""
    pairs = [
        (own, other)
        for other in _of(results, large)
        for own in _of(results, small)
        if (own.seed, own.labelled) == (other.seed, other.labelled) and other.answers
    ]
    return [own.answers / other.answers for own, other in pairs], [
        own.parameters / other.parameters for own, other in pairs
    ]
