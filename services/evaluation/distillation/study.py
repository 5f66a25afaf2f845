"""What a teacher is worth to a small MLLM, and how much of a large one's score it keeps.

For every seed a large MLLM learns from all labelled pictures, and its vision tower teaches a small one on the same
pictures without what is said about them. Small MLLMs then learn from few and from many labelled pictures, with that
tower or with a new one, in as many steps. The large one and the best small one are then adapted to each small domain.
Results are written as they are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from services.evaluation.adaptation.accuracy import accuracy
from services.evaluation.adaptation.answering import answer_sets
from services.evaluation.distillation.set_making import make_quarters_set
from services.mllm.model import Mllm
from services.trainer.adaptation.conversion import META_FILE
from services.trainer.adaptation.domains.making import DOMAINS, make_domains
from services.trainer.adaptation.meta_file import load_meta
from services.trainer.loop import train
from services.trainer.recipe import Recipe
from services.trainer.scenes.composer import Composer
from services.trainer.stage import Stage
from services.trainer.stages import make_stage
from superlink.configuration import ConfigurationError

# Labelled pictures that small models learn from; the last number is how many the large one has.
LABELLED = (200, 2000)
_TEST_PICTURES = 150

# "tower": the distillation itself. "taught": a small MLLM with the distilled tower. "untaught": with a new one, which
# learns in the first stage too: frozen, it would only be in the way.
RunName = Literal["large", "tower", "taught", "untaught"]
SMALL_RUNS: tuple[RunName, ...] = ("taught", "untaught")
_MOST = max(LABELLED)


@dataclass(frozen=True)
class Run:
    """A training of the study; every seed has each."""

    model: RunName
    # Pictures that it learns from; of an adapted model, those that it learned from before.
    labelled: int = _MOST
    # What it is adapted to.
    domain: str | None = None


# Each after those that it goes on from. First, for all seeds, what the study is about; then the rest.
_FIRST_RUNS = (
    Run("large"),
    Run("tower"),
    *(Run(model, min(LABELLED)) for model in SMALL_RUNS),
    Run("taught"),
)
_OTHER_RUNS = (
    *(Run(model, domain=domain) for domain in DOMAINS for model in ("large", "taught")),
    Run("untaught"),
)


class RunResult(BaseModel):
    """One model of one seed."""

    model_config = ConfigDict(frozen=True)

    run: RunName
    labelled: int
    # What it was adapted to, and is judged on; none: the pictures.
    domain: str | None = None
    seed: int
    # Of the MLLM, or of the tower alone.
    parameters: int
    # Of the training.
    seconds: float
    # Shares of right answers by kind of question; of a tower, cosine similarities to its teacher's states.
    figures: dict[str, float]

    @property
    def answers(self) -> float:
        """The share of right answers, over all kinds of questions alike."""
        return sum(self.figures.values()) / len(self.figures)


@dataclass(frozen=True)
class StudyRecipes:
    """How everything is trained."""

    large: Recipe
    tower: Recipe
    # The small MLLM's two stages.
    align: Recipe
    tune: Recipe
    # Of the large MLLM, by domain, and of the small one, to any of them.
    domains: Mapping[str, Recipe]
    small_domain: Recipe


def run_study(
    recipes: StudyRecipes, seeds: Sequence[int], folder: Path, composer: Composer, told: Callable[[str], None]
) -> Iterator[RunResult]:
    """Train and judge; yields every result, those that ``folder`` has from an earlier start first.

    ``told`` hears what begins. Raises what training and reading raise.
    """
    results = folder / "results.jsonl"
    known = read_results(results) if results.exists() else []
    yield from known
    done = {(result.seed, Run(result.run, result.labelled, result.domain)) for result in known}
    wanted = [(seed, run) for runs in (_FIRST_RUNS, _OTHER_RUNS) for seed in seeds for run in runs]
    for seed, run in wanted:
        if (seed, run) in done:
            continue
        result = _Seed(recipes, seed, folder, composer, told).result(run)
        with results.open("a", encoding="utf-8") as lines:
            lines.write(result.model_dump_json() + "\n")
        yield result


def read_results(file: Path) -> list[RunResult]:
    """What an earlier start of the study wrote."""
    return [RunResult.model_validate_json(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


class _Seed:
    """The runs of one seed."""

    def __init__(
        self, recipes: StudyRecipes, seed: int, folder: Path, composer: Composer, told: Callable[[str], None]
    ) -> None:
        self.recipes, self.seed, self.composer, self.told = recipes, seed, composer, told
        self.folder = folder / f"seed{seed}"
        self.set = self.folder / "set"
        self.domains = folder / "domains"

    def result(self, run: Run) -> RunResult:
        """Train ``run``, from its newest checkpoint on where it has one, and judge it."""
        self._draw()
        began = time.monotonic()
        if run.model == "tower":
            stage = self._train("tower", self.recipes.tower, {"teacher": self.folder / "large" / "export"})
            network, seconds = stage.model.get_submodule("student"), time.monotonic() - began
            figures = stage.evaluate(stage.held_out())
        else:
            export = self._adapted(run, run.domain) if run.domain else self._mllm(run)
            seconds = time.monotonic() - began
            network, tokenizer = Mllm.load(export)
            test = load_meta((self.domains / run.domain if run.domain else self.set) / "test" / META_FILE)
            figures = accuracy(answer_sets(network, tokenizer, test, 1, None, lambda _: None))
        return RunResult(
            run=run.model,
            labelled=run.labelled,
            domain=run.domain,
            seed=self.seed,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            seconds=round(seconds, 1),
            figures=figures,
        )

    def _draw(self) -> None:
        """Pictures and conversations, unless they are there; the domains are the same for every seed."""
        # The last that is made.
        if not (self.domains / DOMAINS[-1] / "test" / META_FILE).is_file():
            self.told("drawing the domains")
            make_domains(self.domains, lambda _: None)
        if not (self.set / "test" / META_FILE).is_file():
            self.told(f"seed {self.seed}: drawing pictures")
            make_quarters_set(self.set, self.composer, self.seed, LABELLED, _TEST_PICTURES, lambda _: None)

    def _adapted(self, run: Run, domain: str) -> Path:
        """The export of an MLLM that goes on from the one that learned from the pictures."""
        large = run.model == "large"
        before = self.folder / ("large" if large else f"{run.model}_{run.labelled}/tune") / "export"
        recipe = self.recipes.domains[domain] if large else self.recipes.small_domain
        meta = self.domains / domain / "train" / META_FILE
        return self._adapt(f"{run.model}_{domain}", recipe, meta, {"mllm": before})

    def _mllm(self, run: Run) -> Path:
        """The export of an MLLM that learned from the pictures."""
        labelled = self._labelled(run.labelled)
        if run.model == "large":
            return self._adapt("large", self.recipes.large, labelled, self.recipes.large.start_from)
        tower = {"vision_tower": self.folder / "tower" / "export"} if run.model == "taught" else {}
        align = self.recipes.align
        if run.model == "untaught" and align.adaptation is not None:
            plan = align.adaptation.model_copy(update={"trains": "full"})
            align = align.model_copy(update={"adaptation": plan})
        name = f"{run.model}_{run.labelled}"
        aligned = self._adapt(f"{name}/align", align, labelled, tower)
        return self._adapt(f"{name}/tune", self.recipes.tune, labelled, {"mllm": aligned})

    def _labelled(self, pictures: int) -> Path:
        return self.set / f"train_{pictures}" / META_FILE

    def _adapt(self, name: str, recipe: Recipe, meta: Path, start: Mapping[str, Path] | None = None) -> Path:
        """Train an MLLM on ``meta``; judging it is not the trainer's part here."""
        plan = recipe.adaptation
        if plan is None:
            raise ConfigurationError(f"{recipe.name}: adaptation: missing; the study trains recipes of that stage.")
        changes: dict[str, Any] = {"meta": meta, "held_out": None, "replay": None}
        if plan.new_model is not None:
            # Of the other domains it has letters and digits; words it spells.
            texts = self._labelled(_MOST), self.domains / "handwriting" / "train" / META_FILE
            changes["new_model"] = plan.new_model.model_copy(update={"texts": texts})
        adapted = recipe.model_copy(update={"adaptation": plan.model_copy(update=changes)})
        self._train(name, adapted, start or {})
        return self.folder / name / "export"

    def _train(self, name: str, recipe: Recipe, start: Mapping[str, Path]) -> Stage:
        """Run the recipe to its end in ``name``; where that has happened before, it only reads the last checkpoint."""
        changes: dict[str, Any] = {"name": f"seed {self.seed}: {name}", "seed": self.seed, "start_from": dict(start)}
        if recipe.distillation is not None:
            images = {"images": self.set / "pictures"}
            changes["distillation"] = recipe.distillation.model_copy(update=images)
        own = recipe.model_copy(update=changes)
        stage = make_stage(own)
        train(own, stage, self.folder / name)
        return stage
