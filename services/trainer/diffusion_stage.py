"""Trains the diffusion tool: it draws and edits at the word of its vocabulary, which stands in the MLLM's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from services.detection.model import Detector
from services.diffusion.model import Diffuser
from services.diffusion.storage import load_autoencoder
from services.trainer.detector_stage import noisy_links
from services.trainer.diffusion_evaluation import evaluate_diffuser, held_out_drawings
from services.trainer.diffusion_losses import drawing_losses, finding_loss
from services.trainer.diffusion_samples import DrawingEncoder, EncodedDrawing
from services.trainer.recipe import Recipe
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.drawings import CONCEPTS, DRAWING_OPTIONS, Drawing, draw_drawing, draw_edit_drawing
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.sprites import load_sprites
from services.trainer.stage import SceneStage
from services.trainer.vocabularies import fill_vocabulary
from superlink.configuration import ConfigurationError

# Drawings and edits that a run learns from. Latents and features of each are computed when it first comes up and kept:
# on a CPU that takes as long as the training step itself. Some 30 kB each.
_POOL = 16_000
# The average over steps reaches this far back once it may.
_AVERAGE_DECAY = 0.999


@dataclass(frozen=True)
class _Sample:
    # Which of the pool it is.
    number: int
    # None where it is known already.
    drawing: Drawing | None


class DiffusionStage(SceneStage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.diffuser = start_diffuser(recipe)
        # What is evaluated and exported.
        self.average = average_of(self.diffuser)
        self.model = nn.ModuleDict({"diffuser": self.diffuser, "average": self.average})
        self.composer = Composer(load_sprites(recipe.data.sprites), DRAWING_OPTIONS)
        self.detector = load_judge(recipe)
        self._encoder = DrawingEncoder(self.diffuser, self.composer)
        self._known: dict[int, EncodedDrawing] = {}

    def compose(self, composer: Composer, seed: int) -> _Sample:  # noqa: ARG002  (drawings have a composer of their own)
        """Half drawings, half edits, the same again after as many as the pool holds."""
        number = seed % _POOL
        if number in self._known:
            return _Sample(number, None)
        rng = np.random.default_rng((self.recipe.data.first_seed, number))
        if number % 2:
            return _Sample(number, draw_edit_drawing(self.composer, self.recipe.data.first_seed + number, rng))
        return _Sample(number, draw_drawing(self.composer, rng))

    def prepare(self, scene: _Sample, seed: int) -> _Sample:  # noqa: ARG002  (nothing here is left to chance)
        """Nothing more: encoding needs the model."""
        return scene

    def collate(self, samples: Sequence[_Sample]) -> list[_Sample]:
        """See ``Stage``."""
        return list(samples)

    def losses(self, batch: list[_Sample]) -> dict[str, Tensor]:
        """See ``drawing_losses`` and ``finding_loss``."""
        # The step before has changed the weights.
        self.average.update_parameters(self.diffuser)
        for sample in batch:
            if sample.drawing is not None:
                self._known[sample.number] = self._encoder.encode(sample.drawing)
        known = [self._known[sample.number] for sample in batch]
        slots = torch.stack([drawing.slots for drawing in known]).to(self.diffuser.vocabulary.weight.device)
        losses = drawing_losses(self.diffuser, noisy_links(self.diffuser.vocabulary(slots)), known)
        return {**losses, "finding": finding_loss(self.diffuser, known)}

    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """As many drawings and as many edits as there are scenes; see ``evaluate_diffuser``."""
        averaged: Any = self.average.module
        rows: nn.Embedding = averaged.vocabulary
        drawings, edits = held_out_drawings(self.composer, len(scenes))

        def links_of(asked: Sequence[Drawing]) -> Tensor:
            slots = [drawing.slots.indices for drawing in asked]
            links: Tensor = rows(torch.tensor(slots, device=rows.weight.device))
            return links

        return evaluate_diffuser(averaged, self.detector, drawings, edits, links_of)

    def export(self, folder: Path) -> None:
        """The averaged weights, as the service loads them."""
        averaged: Any = self.average.module
        averaged.save(folder)


def start_diffuser(recipe: Recipe) -> Diffuser:
    """The tool of an earlier run (``start_from.diffuser``), or a new one; its vocabulary and autoencoder don't learn.

    A new one has the vocabulary's rows of ``start_from.vocabulary``, which the MLLM is taught as well, the autoencoder
    of ``start_from.autoencoder`` and the backbone of ``start_from.detector``. Raises ConfigurationError without these.
    """
    if "diffuser" in recipe.start_from:
        diffuser = Diffuser.load(recipe.start_from["diffuser"])
    else:
        diffuser = Diffuser(recipe.diffusion.model_copy(update={"vocabulary": len(CONCEPTS)}))
        fill_vocabulary(diffuser.vocabulary, _start(recipe, "vocabulary"))
        diffuser.autoencoder = load_autoencoder(_start(recipe, "autoencoder"))
        backbone = Detector.load(_start(recipe, "detector")).backbone.state_dict()
        wanted = diffuser.source_encoder.backbone.state_dict()
        diffuser.source_encoder.backbone.load_state_dict({name: backbone[name] for name in wanted})
    frozen: tuple[Any, ...] = (diffuser.vocabulary, diffuser.autoencoder)
    for part in frozen:
        part.requires_grad_(False)
    return diffuser


def load_judge(recipe: Recipe) -> Detector:
    """The detector of ``start_from.detector``, which says what pictures show. Raises ConfigurationError without one."""
    return Detector.load(_start(recipe, "detector")).eval()


def average_of(diffuser: Diffuser) -> AveragedModel:
    """Where the average of the weights over steps is kept; ``update_parameters`` takes those of another step in."""
    return AveragedModel(diffuser, avg_fn=_average).requires_grad_(False)


def _start(recipe: Recipe, name: str) -> Path:
    """The folder that the recipe starts from. Raises ConfigurationError where it names none."""
    if name not in recipe.start_from:
        raise ConfigurationError(f"start_from: the diffusion tool needs a folder under {name!r}.")
    return recipe.start_from[name]


def _average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
    """An average that reaches back a tenth of the run at first, so that it forgets the start."""
    decay = min(_AVERAGE_DECAY, (1 + int(steps)) / (10 + int(steps)))
    return averaged.lerp(current, 1 - decay)
