"""``superlink eval domain``, ``eval conversations`` and ``eval replay``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from services.evaluation.adaptation.benchmarks import BENCHMARKS, PredictionsError, judge_file
from superlink.cli.console import fail, notes, output

# Of the replay study.
_GENERAL = "adaptation/tiny_general"
_DOMAINS = ("adaptation/tiny_aerial", "adaptation/tiny_driving", "adaptation/tiny_handwriting")
_RATIOS = (0.0, 0.25, 0.5, 1.0)
_SEEDS = (1, 2, 3)


def judge_domain_command(
    benchmark: Annotated[str, typer.Argument(help=f"One of {', '.join(BENCHMARKS)}.")],
    predictions: Annotated[
        Path, typer.Argument(help="A JSONL file, a line an answer; docs/adaptation.md has the keys.")
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Judge a model's answers on a benchmark of driving, remote sensing or medicine, as the published tables do.

    Example: superlink eval domain rsvqa answers.jsonl --json figures.json
    """
    if benchmark not in BENCHMARKS:
        fail(f"No benchmark {benchmark!r}. There are: {', '.join(BENCHMARKS)}.", exit_code=2)
    try:
        figures = asdict(judge_file(benchmark, predictions))
    except PredictionsError as error:
        fail(str(error))
    table = Table("figure", "value")
    for name, value in _flat(figures):
        table.add_row(name, value)
    output.print(table)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def judge_conversations_command(
    meta: Annotated[Path, typer.Argument(help="Meta file of the rows to ask; docs/adaptation.md has the format.")],
    weights: Annotated[Path, typer.Option(help="The model: an export of `superlink train`, or a public checkpoint.")],
    max_tiles: Annotated[int, typer.Option(min=1, help="Tiles of an image at most, the thumbnail apart.")] = 12,
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows of each set.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Write every answer into this JSONL file.")] = None,
) -> None:
    """Ask a model the questions of conversation rows, greedily, and count the right answers of each data set.

    Text must be equal but for capitals; a box needs an IoU of 0.5. No stack has to run.

    Example: superlink eval conversations aerial/test/meta.json --weights runs/adaptation/tiny_aerial/export
    """
    # What asks a model needs the trainer's packages, the judges do not.
    from services.evaluation.adaptation.accuracy import accuracy, is_right
    from services.evaluation.adaptation.answering import answer_sets
    from services.mllm.model import Mllm
    from services.runtime.weights import WeightsError
    from services.trainer.adaptation.meta_file import MetaFileError, load_meta
    from services.trainer.adaptation.rows import RowError

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        sets = load_meta(meta)
        mllm, tokenizer = Mllm.load(weights)
        with Progress(*columns, console=notes) as progress:
            task = progress.add_task("Asking", total=None)
            answered = answer_sets(mllm, tokenizer, sets, max_tiles, rows, lambda count: progress.advance(task, count))
    except (MetaFileError, RowError, WeightsError) as error:
        fail(str(error))
    figures = accuracy(answered)
    table = Table("data set", "questions", "right")
    for name, share in figures.items():
        table.add_row(name, str(sum(each.set == name for each in answered)), f"{share:.3f}")
    output.print(table)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if answers:
        lines = (json.dumps(asdict(each) | {"right": is_right(each)}, ensure_ascii=False) for each in answered)
        answers.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def study_replay_command(
    domain: Annotated[
        list[str] | None, typer.Option(help="A recipe that adapts to a domain; repeat. Default: the three small ones.")
    ] = None,
    general: Annotated[str, typer.Option(help="The recipe of the model that they start from.")] = _GENERAL,
    ratio: Annotated[
        list[float] | None,
        typer.Option(min=0, help="General rows for each of the domain; repeat. Default: 0, 0.25, 0.5 and 1."),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Repeat for several. Default: 1, 2 and 3.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder for the runs, and for results.jsonl.")] = Path("runs/replay"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw accuracy over the ratio into this SVG or PNG.")] = None,
) -> None:
    """Study what replay is worth: adapt a small general model to domains at several ratios, and judge both sides.

    A general model a seed is trained first. Every result is written as it is there; run the command again to go on.

    Example: superlink adapt domains && superlink eval replay --chart replay.svg
    """
    # What trains needs the trainer's packages, the judges do not.
    from services.evaluation.adaptation.replay_report import draw_replay, replay_table
    from services.evaluation.adaptation.replay_study import run_study
    from services.runtime.weights import WeightsError
    from services.trainer.adaptation.meta_file import MetaFileError
    from services.trainer.adaptation.replay import ReplayError
    from services.trainer.adaptation.rows import RowError
    from services.trainer.commands import find_recipe
    from services.trainer.recipe import load_recipe

    results = []
    try:
        recipes = [load_recipe(find_recipe(name)) for name in (general, *(domain or _DOMAINS))]
        study = run_study(
            recipes[0],
            recipes[1:],
            ratio or _RATIOS,
            seed or _SEEDS,
            runs,
            runs / "results.jsonl",
            lambda name: notes.print(name, highlight=False),
        )
        for result in study:
            results.append(result)
            if json_file:
                lines = [each.model_dump() for each in results]
                json_file.write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")
    except (MetaFileError, ReplayError, RowError, WeightsError) as error:
        fail(str(error))
    output.print(replay_table(results))
    if chart:
        draw_replay(results, chart)


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested figures as lines: ("speed.rmse", "1.280")."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines.extend(_flat(value, f"{prefix}{name}."))
        elif isinstance(value, tuple):
            lines.append((f"{prefix}{name}", ", ".join(f"{entry:.4f}" for entry in value)))
        else:
            lines.append((f"{prefix}{name}", "" if value is None else f"{value:.4f}".removesuffix(".0000")))
    return lines
