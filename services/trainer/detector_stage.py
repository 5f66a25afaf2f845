"""Trains the detector alone: the rows of its vocabulary stand where the MLLM's link embeddings will stand.

The vocabulary plays the part that a pre-trained text encoder plays for Grounding DINO, which VisionLLM v2 starts from.
Later stages take the detector over and teach the MLLM to speak to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from services.detection.model import Detector
from services.grounding.network import GroundingDecoder
from services.grounding.structures import GroundingTargets
from services.runtime.weights import load_weights
from services.trainer.dense_supervision import DenseHead, category_map, detector_cells, detector_dense_term
from services.trainer.detection_evaluation import evaluate_detector
from services.trainer.detection_samples import image_targets, pad_targets
from services.trainer.distributed import mean_over_ranks
from services.trainer.recipe import Recipe
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Scene
from services.trainer.stage import SceneStage, save_parts

_DENSE_WEIGHT = 1.0
# Noise on the rows, relative to their length: the MLLM's links will never be exact.
LINK_NOISE = 0.1

Targets = TypeVar("Targets", bound=GroundingTargets)


@dataclass(frozen=True)
class _Sample:
    pixels: Tensor
    targets: tuple[Tensor, Tensor]
    cells: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Batch:
    pixels: Tensor
    targets: GroundingTargets
    cells: tuple[Tensor, ...]


class DetectorStage(SceneStage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.detector, self.dense = start_detector(recipe)
        self.model = nn.ModuleDict({"detector": self.detector, "dense": self.dense})

    def prepare(self, scene: Scene, seed: int) -> _Sample:  # noqa: ARG002  (nothing here is left to chance)
        """Ask for every category of the vocabulary, present or not, as in inference."""
        return _Sample(
            pixels=self.detector.prepare(scene.image).pixels,
            targets=image_targets(scene, [members(scene, category) for category in CATEGORIES]),
            cells=detector_cells(category_map(scene), self.recipe.detector.image_side),
        )

    def collate(self, samples: Sequence[_Sample]) -> _Batch:
        """See ``Stage``."""
        return _Batch(
            pixels=torch.stack([sample.pixels for sample in samples]),
            targets=pad_targets([sample.targets for sample in samples]),
            cells=tuple(torch.stack(level) for level in zip(*(sample.cells for sample in samples), strict=True)),
        )

    def losses(self, batch: _Batch) -> dict[str, Tensor]:
        """See ``Stage``."""
        device = self.detector.logit_bias.device
        links, link_mask = noisy_vocabulary(self.detector, len(batch.pixels))
        targets = share_targets(batch.targets, device)
        features = self.detector.encode(batch.pixels.to(device))
        terms = self.detector.loss(self.detector(features, links, link_mask, targets), targets)
        return {**terms, "dense": _DENSE_WEIGHT * detector_dense_term(self.dense, features, batch.cells)}

    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """AP of the present categories and the share of right presence answers, asking for present and absent ones."""
        rows = self.detector.vocabulary.weight
        return evaluate_detector(self.detector, lambda _, categories: rows[categories], scenes)

    def export(self, folder: Path) -> None:
        """Detector weights as the service loads them; the dense head beside them, for later stages."""
        self.detector.save(folder)
        save_parts(folder, dense=self.dense)


def start_detector(recipe: Recipe) -> tuple[Detector, DenseHead]:
    """The detector of an earlier run and its dense head, or new ones; its vocabulary is the scenes' categories."""
    detector = Detector(recipe.detector.model_copy(update={"vocabulary": len(CATEGORIES)}))
    dense = DenseHead(recipe.detector.width)
    if "detector" in recipe.start_from:
        folder = recipe.start_from["detector"]
        load_weights(detector, folder)
        load_weights(dense, folder / "training" / "dense")
    return detector, dense


def noisy_vocabulary(decoder: GroundingDecoder[Any, Any, Any], images: int) -> tuple[Tensor, Tensor]:
    """All rows as links ``[images, vocabulary, link_width]``, as inexact as the MLLM's will be, and their mask."""
    links = noisy_links(decoder.vocabulary.weight.expand(images, -1, -1))
    return links, torch.ones(links.shape[:2], dtype=torch.bool, device=links.device)


def noisy_links(rows: Tensor) -> Tensor:
    """``rows`` of a vocabulary, as inexact as the MLLM's links will be."""
    return rows + torch.randn_like(rows) * rows.detach().std() * LINK_NOISE


def share_targets(targets: Targets, device: torch.device) -> Targets:
    """The same targets on ``device``, normalised by the objects of all ranks."""
    moved = {
        field.name: value.to(device)
        for field in fields(targets)
        if isinstance(value := getattr(targets, field.name), Tensor)
    }
    return replace(targets, **moved, normaliser=max(1.0, mean_over_ranks(float(targets.mask.sum()), device)))
