"""Trains the segmenter alone: it takes over a detector, with its boxes and its vocabulary, and learns masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from services.detection.model import Detector
from services.runtime.weights import load_weights
from services.segmentation.model import Segmenter
from services.segmentation.structures import SegmentationTargets
from services.trainer.detection_samples import image_targets, meant_objects, pad_targets
from services.trainer.detector_stage import noisy_vocabulary, share_targets
from services.trainer.recipe import Recipe
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Scene
from services.trainer.segmentation_evaluation import evaluate_segmenter
from services.trainer.stage import Stage


@dataclass(frozen=True)
class _Sample:
    pixels: Tensor
    targets: tuple[Tensor, Tensor]
    # [objects, side, side] bool.
    masks: Tensor


@dataclass(frozen=True)
class _Batch:
    pixels: Tensor
    targets: SegmentationTargets


class SegmenterStage(Stage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.segmenter = start_segmenter(recipe)
        self.model = nn.ModuleDict({"segmenter": self.segmenter})

    def prepare(self, scene: Scene, seed: int) -> _Sample:  # noqa: ARG002  (nothing here is left to chance)
        """Ask for every category of the vocabulary, present or not, as in inference."""
        groups = [members(scene, category) for category in CATEGORIES]
        return _Sample(
            pixels=self.segmenter.prepare(scene.image).pixels,
            targets=image_targets(scene, groups),
            masks=image_masks(scene, groups, self.segmenter.config.image_side),
        )

    def collate(self, samples: Sequence[_Sample]) -> _Batch:
        """See ``Stage``."""
        targets = pad_targets([sample.targets for sample in samples])
        side = samples[0].masks.shape[-1]
        masks = torch.zeros(*targets.mask.shape, side, side, dtype=torch.bool)
        for row, sample in enumerate(samples):
            masks[row, : len(sample.masks)] = sample.masks
        return _Batch(
            pixels=torch.stack([sample.pixels for sample in samples]),
            targets=SegmentationTargets(targets.boxes, targets.groups, targets.mask, targets.normaliser, masks),
        )

    def losses(self, batch: _Batch) -> dict[str, Tensor]:
        """See ``Stage``."""
        device = self.segmenter.logit_bias.device
        links, link_mask = noisy_vocabulary(self.segmenter, len(batch.pixels))
        targets = share_targets(batch.targets, device)
        features = self.segmenter.encode(batch.pixels.to(device))
        return self.segmenter.loss(self.segmenter(features, links, link_mask, targets), targets)

    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """AP of the masks of the present categories, and their mean IoU as phrases."""
        rows = self.segmenter.vocabulary.weight
        return evaluate_segmenter(self.segmenter, lambda _, categories: rows[categories], scenes)

    def export(self, folder: Path) -> None:
        """Segmenter weights as the service loads them."""
        self.segmenter.save(folder)


def start_segmenter(recipe: Recipe) -> Segmenter:
    """The segmenter of an earlier run (``start_from.segmenter``), or one that takes over ``start_from.detector``."""
    config = recipe.segmenter.model_copy(update={"vocabulary": len(CATEGORIES)})
    if "segmenter" in recipe.start_from:
        segmenter = Segmenter(config)
        load_weights(segmenter, recipe.start_from["segmenter"])
    elif "detector" in recipe.start_from:
        detector = Detector.load(recipe.start_from["detector"])
        # What the detector's calibration says of its candidates holds for the same candidates with masks.
        segmenter = Segmenter(
            config.model_copy(
                update={
                    "detection_calibration": detector.config.detection_calibration,
                    "presence_calibration": detector.config.presence_calibration,
                }
            )
        )
        segmenter.load_state_dict(detector.state_dict(), strict=False)
    else:
        segmenter = Segmenter(config)
    return segmenter


def image_masks(scene: Scene, groups: Sequence[Sequence[int]], side: int) -> Tensor:
    """Masks ``[objects, side, side]`` bool of the objects of ``image_targets``, in the padded square."""
    scale = side / max(scene.height, scene.width)
    size = max(1, round(scene.width * scale)), max(1, round(scene.height * scale))
    masks = torch.zeros(len(meant_objects(groups)), side, side, dtype=torch.bool)
    for place, index in enumerate(meant_objects(groups)):
        whole = Image.fromarray(scene.objects[index].mask.astype(np.uint8) * 255)
        masks[place, : size[1], : size[0]] = torch.from_numpy(
            np.asarray(whole.resize(size, Image.Resampling.BILINEAR)) > 127
        )
    return masks
