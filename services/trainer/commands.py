"""``superlink train``: run a recipe."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from services.trainer.recipe import Recipe, load_recipe
from superlink.configuration import ConfigurationError

_RECIPES = Path(__file__).resolve().parent / "recipes"


def train(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE...",
            help="Recipes by name (tiny_detector), by pattern ('defocus/*') or as a path to a YAML file, one after the "
            "other. Omit them for a list.",
            show_default=False,
        ),
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Folder for checkpoints, logs and exports, one sub-folder a recipe.")
    ] = Path("runs"),
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after this many steps in all, with a checkpoint.")
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            "--seed",
            min=0,
            help="Another seed than the recipe's; the run is then called NAME_seedN. Repeat it for several, each with "
            "all recipes; those that start from one another do so within their seed.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the last evaluation's figures here, of several runs by name."),
    ] = None,
) -> None:
    """Train by recipes; run it again to go on from the newest checkpoints.

    On several devices or processes: torchrun --nproc-per-node 2 -m superlink train tiny_joint

    Example: superlink train tiny_detector
    """
    if not recipes:
        for name, file in _shipped().items():
            typer.echo(f"{name:24} {_first_comment(file)}")
        return
    plans = [load_recipe(file) for name in recipes for file in find_recipes(name)]
    if seeds:
        plans = [plan for seed in seeds for plan in _of_seed(plans, seed)]
    figures: dict[str, dict[str, float]] = {}
    for plan in plans:
        os.environ.setdefault("OMP_NUM_THREADS", str(plan.threads))
        figures[plan.name] = _run(plan, runs / plan.name, stop_after)
        if json_file:
            content = figures if len(plans) > 1 else figures[plan.name]
            json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _of_seed(plans: Sequence[Recipe], seed: int) -> list[Recipe]:
    """``plans`` with another seed; where one starts from another's export, it starts from that of the same seed."""
    names = {plan.name: f"{plan.name}_seed{seed}" for plan in plans}
    exports = {Path("runs", name, "export"): Path("runs", own, "export") for name, own in names.items()}
    return [
        plan.model_copy(
            update={
                "seed": seed,
                "name": names[plan.name],
                "start_from": {part: exports.get(folder, folder) for part, folder in plan.start_from.items()},
            }
        )
        for plan in plans
    ]


def find_recipes(name: str) -> list[Path]:
    """The files of the recipes that a name, a pattern or a path means.

    Raises ConfigurationError naming the known ones.
    """
    if "*" not in name:
        return [find_recipe(name)]
    shipped = _shipped()
    found = [file for known, file in shipped.items() if fnmatch.fnmatchcase(known, name)]
    if not found:
        raise ConfigurationError(f"No recipe like {name!r}. Known recipes: {', '.join(shipped)}.")
    return found


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
    from services.trainer.adaptation.meta_file import MetaFileError
    from services.trainer.adaptation.replay import ReplayError
    from services.trainer.adaptation.rows import RowError
    from services.trainer.checkpoint import CheckpointError
    from services.trainer.loop import train as run_loop
    from services.trainer.scenes.sprites import SpriteError
    from services.trainer.stages import make_stage

    try:
        return run_loop(recipe, make_stage(recipe), folder, stop_after)
    except (SpriteError, CheckpointError, MetaFileError, ReplayError, RowError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
