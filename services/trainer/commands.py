"""``superlink train``: run a recipe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from services.trainer.recipe import Recipe, load_recipe
from superlink.configuration import ConfigurationError

_RECIPES = Path(__file__).resolve().parent / "recipes"


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A recipe by name (tiny_detector) or a path to a YAML file. Omit it to list them."),
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Folder for checkpoints, logs and exports, one sub-folder a recipe.")
    ] = Path("runs"),
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after this many steps in all, with a checkpoint.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Another seed than the recipe's; the run is then called NAME_seedN.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the last evaluation's figures here.")] = None,
) -> None:
    """Train by a recipe; run it again to go on from the newest checkpoint.

    On several devices or processes: torchrun --nproc-per-node 2 -m superlink train tiny_joint

    Example: superlink train tiny_detector
    """
    if recipe is None:
        for name, file in _shipped().items():
            typer.echo(f"{name:24} {_first_comment(file)}")
        return
    plan = load_recipe(find_recipe(recipe))
    if seed is not None:
        plan = plan.model_copy(update={"seed": seed, "name": f"{plan.name}_seed{seed}"})
    os.environ.setdefault("OMP_NUM_THREADS", str(plan.threads))
    figures = _run(plan, runs / plan.name, stop_after)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def find_recipe(name: str) -> Path:
    """The file of a recipe by name or path. Raises ConfigurationError naming the known ones."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        return path
    shipped = _shipped()
    if name not in shipped:
        raise ConfigurationError(f"No recipe {name!r}. Known recipes: {', '.join(shipped)}.")
    return shipped[name]


def _shipped() -> dict[str, Path]:
    """The files of the shipped recipes by name: "tiny_detector", "ablations/queries_4"."""
    files = sorted(_RECIPES.rglob("*.yaml"), key=lambda file: (len(file.parts), file))
    return {file.relative_to(_RECIPES).with_suffix("").as_posix(): file for file in files}


def _first_comment(file: Path) -> str:
    return file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def _run(recipe: Recipe, folder: Path, stop_after: int | None) -> dict[str, float]:
    # torch reads the thread setting when it is imported, so it must not be imported before it is made.
    import torch

    from services.trainer.checkpoint import CheckpointError
    from services.trainer.loop import train as run_loop
    from services.trainer.scenes.sprites import SpriteError
    from services.trainer.stages import make_stage

    torch.manual_seed(recipe.seed)
    try:
        return run_loop(recipe, make_stage(recipe), folder, stop_after)
    except (SpriteError, CheckpointError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
