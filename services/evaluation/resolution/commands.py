"""``superlink eval resolution`` and ``superlink scenes shapes``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.evaluation.resolution.report import ResolutionReport, resolution_table
from superlink.cli.console import fail, notes, output

# Of InternVL 1.5: a single tile, most tiles in training, and those that it was extended to.
_LIMITS = (1, 4, 12, 40)


def evaluate_resolution_command(
    weights: Annotated[list[Path], typer.Argument(help="Folders of models, one for each seed.")],
    meta: Annotated[Path, typer.Option(help="Meta file of the questions; docs/adaptation.md has the format.")],
    tiles: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Most tiles of a picture; repeat for several. Default: 1, 4, 12, 40."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions of each set.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here, limit by limit.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw accuracy and cost by tiles into this SVG or PNG.")] = None,
) -> None:
    """Measure what high resolution is worth: accuracy of every data set by the most tiles of a picture, and the cost.

    Several models, such as those of three seeds, give means and standard deviations.

    Example: superlink eval resolution runs/resolution/all_limits_seed*/export --meta runs/resolution/set/test/meta.json
    """
    # What asks a model needs the trainer's packages, the report does not.
    from services.evaluation.resolution.measuring import measure_resolution
    from services.runtime.weights import WeightsError
    from services.trainer.adaptation.meta_file import MetaFileError, load_meta
    from services.trainer.adaptation.rows import RowError

    limits = sorted(set(tiles or _LIMITS))
    report = ResolutionReport()
    try:
        sets = load_meta(meta)
        questions = sum(min(each.length, rows or each.length) for each in sets.values())
        with _counting("Asking", len(weights) * len(limits) * questions) as advance:
            for figures in measure_resolution(weights, sets, limits, rows, advance):
                report.figures.append(figures)
                if json_file:
                    json_file.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except (MetaFileError, RowError, WeightsError) as error:
        fail(str(error))
    output.print(resolution_table(report))
    if chart:
        from services.evaluation.resolution.chart import draw_resolution

        draw_resolution(chart, report)
        notes.print(f"Wrote {chart}")


def make_shapes_command(
    out: Annotated[Path, typer.Option(help="A new folder for pictures and conversations.")],
    close: Annotated[int, typer.Option(min=1, help="Pictures from near to learn from, at one tile.")] = 4000,
    training: Annotated[int, typer.Option(min=1, help="Pictures of all sizes to learn from.")] = 1200,
    test: Annotated[int, typer.Option(min=1, help="Pictures to be asked about.")] = 120,
    tiles: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Limits of tiles to learn at; repeat for several. Default: 1, 4, 12, 40."),
    ] = None,
) -> None:
    """Draw pictures with a small, a medium or a large shape, and ask about them in English and Chinese.

    Writes conversations for the stage `adaptation` and questions for `superlink eval resolution`. The same numbers give
    the same set.

    Example: superlink scenes shapes --out runs/resolution/set
    """
    from services.evaluation.resolution.set_making import ResolutionSetError, make_resolution_set

    try:
        with _counting("Drawing", close + training + test) as advance:
            make_resolution_set(out, close, training, test, sorted(set(tiles or _LIMITS)), advance)
    except ResolutionSetError as error:
        fail(str(error))
    output.print(f"{out}: {close} pictures from near, {training} of all sizes, {test} to be asked about")


@contextmanager
def _counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields what to tell of things as they are done."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=notes) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
