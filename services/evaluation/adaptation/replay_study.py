"""How much replay an adaptation needs: domains, ratios and seeds, each judged on its domain and on general data.

From one general model a seed, every domain is learned at every ratio of general to domain rows: the study of
Mini-InternVL at a size that one core can do. Recipes say how; results are written as they are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from services.evaluation.adaptation.accuracy import accuracy
from services.evaluation.adaptation.answering import answer_sets
from services.mllm.model import Mllm
from services.trainer.adaptation.meta_file import load_meta
from services.trainer.adaptation.plan import Adaptation, Replay
from services.trainer.adaptation.replay import mix
from services.trainer.adaptation_stage import AdaptationStage
from services.trainer.loop import train
from services.trainer.recipe import Recipe
from superlink.configuration import ConfigurationError

# As in the published recipes.
_WARMUP_SHARE = 0.03


class ReplayResult(BaseModel):
    """One adaptation: shares of right answers before and after it."""

    model_config = ConfigDict(frozen=True)

    domain: str
    ratio: float
    seed: int
    steps: int
    # Of the training alone.
    seconds: float
    domain_before: float
    domain_after: float
    general_before: float
    general_after: float


def run_study(
    general: Recipe,
    domains: Sequence[Recipe],
    ratios: Sequence[float],
    seeds: Sequence[int],
    runs: Path,
    results: Path,
    told: Callable[[str], None],
) -> Iterator[ReplayResult]:
    """Train and judge; yields every result, those that ``results`` (a JSONL file) holds from an earlier start first.

    ``told`` hears what begins. Raises ConfigurationError for recipes that are not of the adaptation stage or hold
    nothing out, and what training and reading raise.
    """
    known = read_results(results) if results.exists() else []
    yield from known
    done = {(result.domain, result.ratio, result.seed) for result in known}
    for seed in seeds:
        if all((recipe.name, ratio, seed) in done for recipe in domains for ratio in ratios):
            continue
        start = _trained(general, general.name, seed, runs, told)
        before = {recipe.name: _judge(recipe, start) for recipe in (general, *domains)}
        for recipe in domains:
            for ratio in ratios:
                if (recipe.name, ratio, seed) in done:
                    continue
                adapted = _at_ratio(recipe, ratio, start)
                began = time.monotonic()
                folder = _trained(adapted, f"{recipe.name}_r{ratio:g}", seed, runs, told)
                seconds = time.monotonic() - began
                result = ReplayResult(
                    domain=recipe.name,
                    ratio=ratio,
                    seed=seed,
                    steps=adapted.schedule.steps,
                    seconds=round(seconds, 1),
                    domain_before=before[recipe.name],
                    domain_after=_judge(recipe, folder),
                    general_before=before[general.name],
                    general_after=_judge(general, folder),
                )
                results.parent.mkdir(parents=True, exist_ok=True)
                with results.open("a", encoding="utf-8") as lines:
                    lines.write(result.model_dump_json() + "\n")
                yield result


def read_results(file: Path) -> list[ReplayResult]:
    """What an earlier start of the study wrote."""
    return [ReplayResult.model_validate_json(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def _trained(recipe: Recipe, name: str, seed: int, runs: Path, told: Callable[[str], None]) -> Path:
    """The export of ``recipe`` with another name and seed; trained unless it is there."""
    named = recipe.model_copy(update={"name": f"{name}_seed{seed}", "seed": seed})
    folder = runs / named.name
    if not (folder / "export" / "model.safetensors").is_file():
        told(named.name)
        train(named, AdaptationStage(named), folder)
    return folder / "export"


def _at_ratio(recipe: Recipe, ratio: float, start: Path) -> Recipe:
    """``recipe`` from ``start`` on, with another replay ratio: one epoch, however many rows it then has."""
    plan, replay = _plan(recipe), _plan(recipe).replay
    if replay is None:
        raise ConfigurationError(f"{recipe.name}: adaptation.replay: missing; the study needs to know what to replay.")
    rows = sum(found.used_rows for found in mix(load_meta(plan.meta), load_meta(replay.meta), ratio).values())
    steps = ceil(rows / recipe.schedule.batch_size)
    # Only at the end is there something to look at.
    every = {"every_steps": steps}
    return recipe.model_copy(
        update={
            "schedule": recipe.schedule.model_copy(
                update={"steps": steps, "warmup_steps": round(_WARMUP_SHARE * steps)},
            ),
            "evaluation": recipe.evaluation.model_copy(update=every),
            "checkpoints": recipe.checkpoints.model_copy(update=every),
            "adaptation": plan.model_copy(update={"replay": Replay(meta=replay.meta, ratio=ratio), "held_out": None}),
            "start_from": {"mllm": start},
        }
    )


def _judge(recipe: Recipe, weights: Path) -> float:
    """The share of right answers to what ``recipe`` holds out."""
    plan = _plan(recipe)
    if plan.held_out is None:
        raise ConfigurationError(f"{recipe.name}: adaptation.held_out: missing; the study judges on it.")
    mllm, tokenizer = Mllm.load(weights)
    answered = answer_sets(mllm, tokenizer, load_meta(plan.held_out), plan.max_tiles, None, lambda _: None)
    shares = accuracy(answered)
    return sum(shares.values()) / len(shares)


def _plan(recipe: Recipe) -> Adaptation:
    if recipe.adaptation is None:
        raise ConfigurationError(f"{recipe.name}: adaptation: missing; the study trains recipes of that stage.")
    return recipe.adaptation
