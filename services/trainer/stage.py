"""What the training loop asks of a stage, and the streams of scenes that most stages learn from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from services.runtime.weights import save_weights
from services.trainer.recipe import Data, Recipe
from services.trainer.scenes.composer import EVALUATION_SEED_START, Composer, ComposerOptions
from services.trainer.scenes.sprites import load_sprites
from superlink.configuration import Section

# Scenes for evaluation during training: never trained on, and apart from the fixed evaluation set.
_VALIDATION_SEED_START = EVALUATION_SEED_START // 2


class Stage(ABC):
    """One way of training. ``model`` holds all parts, trained or frozen; its state is what checkpoints keep."""

    recipe: Recipe
    model: nn.Module

    @abstractmethod
    def __init__(self, recipe: Recipe) -> None: ...

    def frozen(self) -> Sequence[str]:
        """Paths of the modules of ``model`` that do not learn."""
        return self.recipe.frozen

    @abstractmethod
    def training_data(self) -> Dataset[Any]:
        """Samples by number. It keeps no state, so that a resumed run can start anywhere."""

    @abstractmethod
    def held_out(self) -> Sequence[Any]:
        """What ``evaluate`` is given."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Any:
        """Make a batch of samples."""

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Weighted loss terms of a batch, on this rank, normalised by global counts; their sum is minimised."""

    def after_step(self) -> None:  # noqa: B027  (most stages have nothing to bring back)
        """Bring parameters that left their range back, right after the optimiser's step."""

    @abstractmethod
    def evaluate(self, scenes: Sequence[Any]) -> dict[str, float]:
        """Figures on what is held out, for TensorBoard and the log."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write what the services load."""


class SceneStage(Stage):
    """A stage that learns from composed scenes."""

    def training_data(self) -> Dataset[Any]:
        """See ``SceneStream``."""
        return SceneStream(self, self.recipe.data)

    def held_out(self) -> Sequence[Any]:
        """Scenes that are never trained on."""
        composer = make_composer(self.recipe.data)
        return [composer.compose(_VALIDATION_SEED_START + number) for number in range(self.recipe.evaluation.scenes)]

    def compose(self, composer: Composer, seed: int) -> Any:
        """What sample ``seed`` is about, a scene for most; runs in a data process."""
        return composer.compose(seed)

    @abstractmethod
    def prepare(self, scene: Any, seed: int) -> Any:
        """Turn what ``compose`` made into a training sample; runs in a data process, on nothing but its arguments."""


class SceneStream(Dataset[Any]):
    """Sample ``index`` is made from scene seed ``first_seed + index``: it keeps no state, so it can start anywhere."""

    def __init__(self, stage: SceneStage, data: Data) -> None:
        self.stage = stage
        self.first_seed = data.first_seed
        self.composer = make_composer(data)

    def __getitem__(self, index: int) -> Any:
        seed = self.first_seed + index
        return self.stage.prepare(self.stage.compose(self.composer, seed), seed)


class StepSampler(Sampler[list[int]]):
    """The sample numbers of every step of one rank, beginning at any step."""

    def __init__(self, first_step: int, steps: int, batch_size: int, rank: int, world_size: int) -> None:
        self.steps = range(first_step, steps)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            start = (step * self.world_size + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))

    def __len__(self) -> int:
        return len(self.steps)


def make_composer(data: Data) -> Composer:
    """The composer that a recipe's data section describes."""
    options = ComposerOptions(
        styles=data.styles,
        smallest_side=data.smallest_side,
        largest_side=data.largest_side,
        named_grounds=data.named_grounds,
        most_figures=data.most_figures,
    )
    return Composer(load_sprites(data.sprites), options)


class _NoConfiguration(Section):
    """Parts that only training uses have their sizes from the recipe."""


def save_parts(folder: Path, **parts: nn.Module) -> None:
    """Write what only later stages need, out of the services' way: ``folder/training/NAME/model.safetensors``."""
    for name, part in parts.items():
        save_weights(part, folder / "training" / name, _NoConfiguration())
