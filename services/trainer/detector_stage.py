"""Trains the detector alone: a table of categories stands where the MLLM's link embeddings will stand.

The table plays the part that a pre-trained text encoder plays for Grounding DINO, which VisionLLM v2 starts from. The
joint stage takes the detector over and teaches the MLLM to speak to it; the table is kept only as its starting aid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from services.detection.model import Detector
from services.detection.structures import DetectionTargets
from services.runtime.weights import load_weights
from services.trainer.dense_supervision import DenseHead, category_map, detector_cells, detector_dense_term
from services.trainer.detection_evaluation import evaluate_detector
from services.trainer.detection_samples import image_targets, pad_targets
from services.trainer.distributed import mean_over_ranks
from services.trainer.recipe import Recipe
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.wording import pick
from services.trainer.stage import Stage, save_parts

# Many absent categories beside the few present ones, so that look-alikes are told apart.
_MOST_GROUPS = 40
_LEAST_ABSENT = 4
# Share of scenes that are asked about one category only, where no other phrase could be meant instead.
_SINGLE = 0.25
_DENSE_WEIGHT = 1.0
# Noise on the table's rows, relative to their length: the MLLM's links will never be exact.
_LINK_NOISE = 0.1


@dataclass(frozen=True)
class _Sample:
    pixels: Tensor
    # Category index of each group.
    categories: list[int]
    targets: tuple[Tensor, Tensor]
    cells: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Batch:
    pixels: Tensor
    categories: Tensor
    link_mask: Tensor
    targets: DetectionTargets
    cells: tuple[Tensor, ...]


class CategoryTable(nn.Embedding):
    """One stand-in link embedding a category: ``[categories, link_width]``."""

    def __init__(self, link_width: int) -> None:
        super().__init__(len(CATEGORIES), link_width)


class DetectorStage(Stage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.detector, self.table, self.dense = start_detector(recipe)
        self.model = nn.ModuleDict({"detector": self.detector, "table": self.table, "dense": self.dense})

    def prepare(self, scene: Scene, seed: int) -> _Sample:
        """Ask for some of the present categories and some absent ones, in random order."""
        rng = np.random.default_rng((seed, 1))
        asked = _single(scene, rng) if rng.uniform() < _SINGLE else draw_categories(scene, rng)
        groups = [members(scene, CATEGORIES[category]) for category in asked]
        return _Sample(
            pixels=self.detector.prepare(scene.image).pixels,
            categories=asked,
            targets=image_targets(scene, groups),
            cells=detector_cells(category_map(scene), self.recipe.detector.image_side),
        )

    def collate(self, samples: Sequence[_Sample]) -> _Batch:
        """See ``Stage``."""
        longest = max(len(sample.categories) for sample in samples)
        categories = torch.zeros(len(samples), longest, dtype=torch.long)
        link_mask = torch.zeros(len(samples), longest, dtype=torch.bool)
        for row, sample in enumerate(samples):
            categories[row, : len(sample.categories)] = torch.tensor(sample.categories)
            link_mask[row, : len(sample.categories)] = True
        return _Batch(
            pixels=torch.stack([sample.pixels for sample in samples]),
            categories=categories,
            link_mask=link_mask,
            targets=pad_targets([sample.targets for sample in samples]),
            cells=tuple(torch.stack(level) for level in zip(*(sample.cells for sample in samples), strict=True)),
        )

    def losses(self, batch: _Batch) -> dict[str, Tensor]:
        """See ``Stage``."""
        device = self.table.weight.device
        links = self.table(batch.categories.to(device))
        links = links + torch.randn_like(links) * links.detach().std() * _LINK_NOISE
        targets = to_device(batch.targets, device)
        targets = replace(targets, normaliser=max(1.0, mean_over_ranks(float(targets.mask.sum()), device)))
        features = self.detector.encode(batch.pixels.to(device))
        outputs = self.detector(features, links, batch.link_mask.to(device), targets)
        terms = self.detector.loss(outputs, targets)
        return {**terms, "dense": _DENSE_WEIGHT * detector_dense_term(self.dense, features, batch.cells)}

    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """AP of the present categories and the share of right presence answers, asking for present and absent ones."""
        return evaluate_detector(self.detector, lambda _, categories: self.table.weight[categories], scenes)

    def export(self, folder: Path) -> None:
        """Detector weights as the service loads them; the table and the dense head beside them, for later stages."""
        self.detector.save(folder)
        save_parts(folder, table=self.table, dense=self.dense)


def start_detector(recipe: Recipe) -> tuple[Detector, CategoryTable, DenseHead]:
    """The detector of an earlier run with its table and its dense head, or new ones."""
    detector = Detector(recipe.detector)
    table = CategoryTable(recipe.detector.link_width)
    dense = DenseHead(recipe.detector.width)
    if "detector" in recipe.start_from:
        folder = recipe.start_from["detector"]
        load_weights(detector, folder)
        load_weights(table, folder / "training" / "table")
        load_weights(dense, folder / "training" / "dense")
    return detector, table, dense


def draw_categories(scene: Scene, rng: np.random.Generator) -> list[int]:
    """Indices of all, some or none of the present categories and of many absent ones, in random order."""
    present = _present(scene)
    rng.shuffle(present)
    asked = present if rng.uniform() < 0.5 else present[: int(rng.integers(0, len(present) + 1))]
    asked = asked + _absent(present, int(rng.integers(_LEAST_ABSENT, _MOST_GROUPS - len(asked) + 1)), rng)
    rng.shuffle(asked)
    return asked


def _single(scene: Scene, rng: np.random.Generator) -> list[int]:
    present = _present(scene)
    return [pick(rng, present)] if present and rng.uniform() < 0.5 else _absent(present, 1, rng)


def _present(scene: Scene) -> list[int]:
    return sorted({CATEGORY_INDEX[thing.category.key] for thing in scene.objects})


def _absent(present: list[int], count: int, rng: np.random.Generator) -> list[int]:
    """Indices of ``count`` categories that are not in the scene, about half of them kin of one that is."""
    others = [int(index) for index in rng.permutation(len(CATEGORIES)) if index not in present]
    families = {CATEGORIES[index].group for index in present}
    kin = [index for index in others if CATEGORIES[index].group in families]
    return list(dict.fromkeys([*kin[: (count + 1) // 2], *others]))[:count]


def to_device(targets: DetectionTargets, device: torch.device) -> DetectionTargets:
    """The same targets on ``device``."""
    return replace(
        targets, boxes=targets.boxes.to(device), groups=targets.groups.to(device), mask=targets.mask.to(device)
    )
