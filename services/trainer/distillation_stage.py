"""Distils a small InternViT from a large frozen one, on pictures of which nothing is known (Mini-InternVL, 3.1).

``start_from.teacher`` holds the large one, alone or in an MLLM; ``start_from.student``, where given, what the small
one begins with: CLIP-ViT-L in the paper. What is exported takes its place in an MLLM as ``start_from.vision_tower`` of
the adaptation stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from services.mllm.tiling import cut_tiles
from services.runtime.weights import save_weights
from services.trainer.distillation.objective import HiddenStateDistillation, last_hidden_states
from services.trainer.distillation.pictures import Pictures, find_pictures, hold_out, read_tile
from services.trainer.distillation.plan import Distillation, TowerConfig
from services.trainer.distillation.student import make_student, start_from
from services.trainer.distillation.tower_folder import read_tower
from services.trainer.recipe import Recipe
from services.trainer.scenes.scene import Scene
from services.trainer.stage import SceneStage
from superlink.configuration import ConfigurationError

_START_FROM = {"student", "teacher"}
_PICTURES_A_PASS = 32


class DistillationStage(SceneStage):
    """See the module's docstring. ``model`` holds the student and the projections; the teacher stays on disk."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.plan = _plan(recipe)
        self.teacher = read_tower(recipe.start_from["teacher"]).requires_grad_(False)
        self.student = make_student(self.plan.student, self.plan.tile_size)
        if "student" in recipe.start_from:
            start_from(self.student, recipe.start_from["student"])
        _check_fit(self.plan, self.student, self.teacher)
        try:
            self.objective = HiddenStateDistillation(
                self.plan.layers,
                self.student.config.hidden_size,
                self.teacher.config.hidden_size,
                self.plan.projection,
            )
        except ValueError as error:
            raise ConfigurationError(f"distillation.projection: {error}.") from error
        self.model = nn.ModuleDict({"student": self.student, "objective": self.objective})
        self._learned: list[Path] = []
        self._held_out: list[Path] = []
        if self.plan.images is not None:
            found = find_pictures(self.plan.images)
            self._learned, self._held_out = hold_out(found, recipe.evaluation.scenes, recipe.seed)

    def training_data(self) -> Dataset[Any]:
        """See ``Stage``: tiles, of the folder's images or of composed scenes."""
        if self._learned:
            return Pictures(self._learned, self.plan.tile_size, self.recipe.seed)
        return super().training_data()

    def held_out(self) -> Sequence[Tensor]:
        """See ``Stage``: tiles."""
        if self._held_out:
            return [read_tile(file, self.plan.tile_size) for file in self._held_out]
        return [self.prepare(scene, scene.seed) for scene in super().held_out()]

    def prepare(self, scene: Scene, seed: int) -> Tensor:
        """The scene as one tile, ``[3, tile_size, tile_size]``."""
        del seed
        return cut_tiles(Image.fromarray(scene.image), 1, self.plan.tile_size)[0]

    def collate(self, samples: Sequence[Tensor]) -> Tensor:
        """See ``Stage``."""
        return torch.stack(list(samples))

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        """The negative cosine similarity, -1 at best."""
        return {"cosine": self.objective.loss(*self._states(batch))}

    @torch.no_grad()
    def evaluate(self, scenes: Sequence[Tensor]) -> dict[str, float]:
        """The cosine similarity on held-out pictures: over all compared layers, and of the last one."""
        self.model.eval()
        total = torch.zeros(self.plan.layers)
        for start in range(0, len(scenes), _PICTURES_A_PASS):
            batch = self.collate(scenes[start : start + _PICTURES_A_PASS])
            total += self.objective(*self._states(batch)).cpu() * len(batch)
        similarities = total / len(scenes)
        return {"cosine": float(similarities.mean()), "cosine_last": float(similarities[-1])}

    def export(self, folder: Path) -> None:
        """The student alone."""
        save_weights(self.student, folder, TowerConfig(vision=self.plan.student, tile_size=self.plan.tile_size))

    def _states(self, batch: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The last layers' states of the student and of the teacher."""
        pixels = batch.to(self.student.embeddings.cls_token.device)
        with torch.no_grad():
            nn.Module.to(self.teacher, pixels.device)
            taught = last_hidden_states(self.teacher, pixels, self.plan.layers)
        return last_hidden_states(self.student, pixels, self.plan.layers), taught


def _plan(recipe: Recipe) -> Distillation:
    if recipe.distillation is None:
        raise ConfigurationError("distillation: the stage needs this section; it says how large the student is.")
    unknown = sorted(recipe.start_from.keys() - _START_FROM)
    if unknown:
        raise ConfigurationError(f"start_from.{unknown[0]}: this stage knows {' and '.join(sorted(_START_FROM))}.")
    if "teacher" not in recipe.start_from:
        raise ConfigurationError("start_from.teacher: the stage needs a folder with the tower to learn from.")
    return recipe.distillation


def _check_fit(plan: Distillation, student: InternVLVisionModel, teacher: InternVLVisionModel) -> None:
    """Raises ConfigurationError where student and teacher cannot be compared layer by layer and place by place."""
    for name, tower in (("student", student), ("teacher", teacher)):
        has = len(tower.encoder.layer)
        if plan.layers > has:
            raise ConfigurationError(f"distillation.layers: {plan.layers} cannot be compared, the {name} has {has}.")
    student_side, teacher_side = (_patches(tower, plan.tile_size) for tower in (student, teacher))
    if student_side != teacher_side:
        raise ConfigurationError(
            f"distillation.student.patch_size: of {plan.tile_size} pixels the student makes {student_side} x "
            f"{student_side} patches and the teacher {teacher_side} x {teacher_side}; they must be as many."
        )


def _patches(tower: InternVLVisionModel, tile_size: int) -> int:
    """Patches along a side of a tile."""
    patch: Any = tower.config.patch_size
    return int(tile_size // patch[0])
