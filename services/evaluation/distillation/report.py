"""The distillation study as a table and as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.table import Table

from services.evaluation.distillation.study import SMALL_RUNS, RunName, RunResult
from services.trainer.adaptation.domains.making import DOMAINS

_NAMES: dict[RunName, str] = {
    "large": "large",
    "taught": "small, distilled tower",
    "untaught": "small, new tower",
}
# The small model, and the large one whose score it should keep.
_COMPARED: tuple[RunName, RunName] = ("taught", "large")
# What models are judged on; see ``RunResult.domain``.
_PLACES: dict[str | None, str] = {None: "the pictures"} | {domain: domain for domain in DOMAINS}
# Kinds of questions about the pictures.
_KINDS = ("naming", "colour")


def study_table(results: Sequence[RunResult]) -> Table:
    """A row a model: mean shares of right answers over seeds, and standard deviations."""
    table = Table("model", "labelled", "adapted to", "seeds", "parameters", "right", *_KINDS, "s")
    for domain in _PLACES:
        for run, name in _NAMES.items():
            for labelled in sorted({result.labelled for result in _of(results, run, domain)}):
                own = [result for result in _of(results, run, domain) if result.labelled == labelled]
                kinds = ["" if domain else spread([each.figures[kind] for each in own]) for kind in _KINDS]
                right = spread([each.answers for each in own])
                parameters, seconds = f"{own[0].parameters:,}", f"{mean(each.seconds for each in own):.0f}"
                table.add_row(name, str(labelled), domain or "", str(len(own)), parameters, right, *kinds, seconds)
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
    for domain, place in _PLACES.items():
        shares, sizes = _kept(results, domain)
        if shares:
            sentences.append(
                f"With {mean(sizes):.1%} of the large model's parameters the small one keeps {spread(shares)} of its "
                f"score on {place}, at least {min(shares):.3f}."
            )
    return sentences


def draw_study(results: Sequence[RunResult], file: Path) -> None:
    """Right answers over labelled pictures, and in each domain: the mean of seeds, and from lowest to highest."""
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
    # Second, as in the other panel: colours go by order.
    lines.insert(1, Line(f"large, {max(counts)} labelled", [(count, large) for count in counts]))
    adapted = [
        Line(
            _NAMES[run],
            [
                (place, [each.answers for each in _of(results, run, domain)])
                for place, domain in enumerate(DOMAINS)
                if _of(results, run, domain)
            ],
        )
        for run in _COMPARED
    ]
    panels = [
        Panel("Held-out pictures", "labelled pictures", "right answers", lines, counts),
        Panel("Adapted to a domain", "", "right answers", adapted, names=DOMAINS),
    ]
    draw_panels(file, panels)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.3f}" if len(values) == 1 else f"{mean(values):.3f} ± {stdev(values):.3f}"


def _of(results: Sequence[RunResult], run: RunName, domain: str | None = None) -> list[RunResult]:
    return [result for result in results if (result.run, result.domain) == (run, domain)]


def _kept(results: Sequence[RunResult], domain: str | None) -> tuple[list[float], list[float]]:
    """For every seed that has both, learned from equally many labels: shares of the score, and of the parameters."""
    small, large = _COMPARED
    pairs = [
        (own, other)
        for other in _of(results, large, domain)
        for own in _of(results, small, domain)
        if (own.seed, own.labelled) == (other.seed, other.labelled) and other.answers
    ]
    return [own.answers / other.answers for own, other in pairs], [
        own.parameters / other.parameters for own, other in pairs
    ]
