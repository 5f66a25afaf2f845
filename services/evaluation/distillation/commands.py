"""``superlink eval distillation``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superlink.cli.console import fail, notes, output

_DEFAULT_SEEDS = (0, 1, 2)


def evaluate_distillation_command(
    out: Annotated[
        Path, typer.Option(help="Folder for pictures, runs and results.jsonl; what is there already is kept.")
    ] = Path("runs/distillation"),
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", min=0, help="Repeat for several. Default: 0, 1 and 2.")
    ] = None,
    sprites: Annotated[Path | None, typer.Option(help="File made by `make sprites`.", show_default="sprites/")] = None,
    chart: Annotated[
        Path | None, typer.Option(help="Draw accuracy over labels, and by domain, into this SVG or PNG.")
    ] = None,
) -> None:
    """Measure in a small world what a teacher is worth to a small model, and how much of a large one's score it keeps.

    The score is of pictures that all learn from, and of three small domains that large and small are adapted to. Trains
    everything by the recipes distillation/tiny_*, about a quarter of an hour a seed on one core. Each result is written
    as it is there; start it again to go on.

    Example: superlink eval distillation --chart distillation.svg
    """
    # What trains needs the trainer's packages.
    from services.evaluation.distillation.report import conclusions, draw_study, study_table
    from services.evaluation.distillation.study import StudyRecipes, run_study
    from services.runtime.weights import WeightsError
    from services.trainer.adaptation.domains.making import DOMAINS
    from services.trainer.adaptation.meta_file import MetaFileError
    from services.trainer.adaptation.rows import RowError
    from services.trainer.checkpoint import CheckpointError
    from services.trainer.commands import find_recipe
    from services.trainer.recipe import Data, load_recipe
    from services.trainer.scenes.sprites import SpriteError
    from services.trainer.stage import make_composer

    domains = dict.fromkeys(DOMAINS, load_recipe(find_recipe("distillation/tiny_domain")))
    domains["aerial"] = load_recipe(find_recipe("distillation/tiny_domain_boxes"))
    recipes = StudyRecipes(
        large=load_recipe(find_recipe("distillation/tiny_large")),
        tower=load_recipe(find_recipe("distillation/tiny_tower")),
        align=load_recipe(find_recipe("distillation/tiny_align")),
        tune=load_recipe(find_recipe("distillation/tiny_tune")),
        domains=domains,
        small_domain=load_recipe(find_recipe("distillation/tiny_domain_small")),
    )
    results = []
    try:
        composer = make_composer(Data(sprites=sprites))
        for result in run_study(recipes, seeds or _DEFAULT_SEEDS, out, composer, notes.print):
            results.append(result)
            where = result.domain or f"{result.labelled} labelled"
            notes.print(f"seed {result.seed}, {result.run}, {where}: {result.answers:.3f}")
    except (CheckpointError, MetaFileError, RowError, SpriteError, WeightsError) as error:
        fail(str(error))
    output.print(study_table(results))
    for sentence in conclusions(results):
        output.print(sentence)
    if chart:
        draw_study(results, chart)
        notes.print(f"Wrote {chart}")
