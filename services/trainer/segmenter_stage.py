"""Trains the segmenter alone: it takes over a detector, with its boxes and its vocabulary, and learns masks.

Every scene is asked for all categories and named grounds, and for a few things that are marked on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from services.detection.model import Detector
from services.runtime.regions import GroupRegions, RegionPoints, pad_regions, region_mask, region_points
from services.runtime.weights import WEIGHTS_FILE, WeightsError
from services.segmentation.model import Segmenter
from services.segmentation.structures import SegmentationTargets
from services.trainer.detection_samples import image_targets, meant_objects, pad_targets
from services.trainer.detector_stage import LINK_NOISE, share_targets
from services.trainer.mark_evaluation import evaluate_marks
from services.trainer.recipe import Recipe
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.grounds import GROUND_CATEGORIES, with_grounds
from services.trainer.scenes.marks import MARK_KINDS, draw_mark, markable
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Scene, SceneObject
from services.trainer.segment_names import REGION_ROW, SEGMENT_NAMES
from services.trainer.segmentation_evaluation import evaluate_segmenter
from services.trainer.stage import SceneStage
from services.trainer.vocabularies import fill_vocabulary

_VOCABULARY = "vocabulary.weight"
# What every scene is asked for, in the order of the vocabulary's rows.
ASKED = (*CATEGORIES, *GROUND_CATEGORIES.values())
# Marked things a scene.
_FEWEST_MARKS, _MOST_MARKS = 2, 4
# Share of marked things that are called by their name.
_NAMED_SHARE = 0.3
# Keeps the marks' random numbers apart from the scene's.
_MARKS_STREAM = 7


@dataclass(frozen=True)
class _Sample:
    pixels: Tensor
    targets: tuple[Tensor, Tensor]
    # [objects, side, side] bool.
    masks: Tensor
    # Rows of the vocabulary that stand for the marked things, and where their marks are, in units of the longer side.
    marked_rows: tuple[int, ...]
    marks: tuple[RegionPoints, ...]


@dataclass(frozen=True)
class _Batch:
    pixels: Tensor
    targets: SegmentationTargets
    # [images, marked] int64 rows of the vocabulary; -1 where an image has fewer marks than others.
    marked_rows: Tensor
    regions: GroupRegions


class SegmenterStage(SceneStage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.segmenter = start_segmenter(recipe)
        self.model = nn.ModuleDict({"segmenter": self.segmenter})

    def prepare(self, scene: Scene, seed: int) -> _Sample:
        """Ask for every name of the vocabulary, present or not, as in inference, and for marked things."""
        rng = np.random.default_rng([_MARKS_STREAM, seed])
        marked = rng.permutation(markable(scene))[: rng.integers(_FEWEST_MARKS, _MOST_MARKS + 1)].tolist()
        everything = with_grounds(scene)
        groups = [*(members(everything, category) for category in ASKED), *((thing,) for thing in marked)]
        return _Sample(
            pixels=self.segmenter.prepare(scene.image).pixels,
            targets=image_targets(everything, groups),
            masks=image_masks(everything, groups, self.segmenter.config.image_side),
            marked_rows=tuple(_marked_row(scene.objects[thing], rng) for thing in marked),
            marks=tuple(_look(scene, thing, rng) for thing in marked),
        )

    def collate(self, samples: Sequence[_Sample]) -> _Batch:
        """See ``Stage``."""
        targets = pad_masks([(sample.targets, sample.masks) for sample in samples])
        regions = pad_regions(
            [[(len(ASKED) + place, mark) for place, mark in enumerate(sample.marks)] for sample in samples]
        )
        rows = torch.full((len(samples), targets.groups.shape[2] - len(ASKED)), -1)
        for row, sample in enumerate(samples):
            rows[row, : len(sample.marked_rows)] = torch.tensor(sample.marked_rows, dtype=torch.int64)
        return _Batch(
            pixels=torch.stack([sample.pixels for sample in samples]),
            targets=targets,
            marked_rows=rows,
            regions=regions,
        )

    def losses(self, batch: _Batch) -> dict[str, Tensor]:
        """See ``Stage``."""
        device = self.segmenter.logit_bias.device
        rows = torch.arange(len(ASKED)).expand(len(batch.pixels), -1)
        links, link_mask = noisy_rows(self.segmenter, torch.cat([rows, batch.marked_rows], dim=1).to(device))
        regions = batch.regions.to(device)
        targets = share_targets(batch.targets, device)
        features = self.segmenter.encode(batch.pixels.to(device))
        return self.segmenter.loss(self.segmenter(features, links, link_mask, targets, regions), targets)

    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """AP of the masks of things, mean IoU of things and of grounds as phrases, and that of marked things."""
        rows = self.segmenter.vocabulary.weight
        return {
            **evaluate_segmenter(self.segmenter, lambda _, names: rows[names], scenes),
            **evaluate_marks(self.segmenter, rows[REGION_ROW], scenes),
        }

    def export(self, folder: Path) -> None:
        """Segmenter weights as the service loads them."""
        self.segmenter.save(folder)


def start_segmenter(recipe: Recipe) -> Segmenter:
    """The segmenter of an earlier run (``start_from.segmenter``), or one that takes over ``start_from.detector``."""
    config = recipe.segmenter.model_copy(update={"vocabulary": len(SEGMENT_NAMES), "rows_beside": REGION_ROW})
    if "segmenter" in recipe.start_from:
        segmenter = Segmenter(config)
        take_over(segmenter, recipe.start_from["segmenter"])
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
        _fill(segmenter, detector.state_dict())
    else:
        segmenter = Segmenter(config)
    if "vocabulary" in recipe.start_from:
        fill_vocabulary(segmenter.vocabulary, recipe.start_from["vocabulary"])
    return segmenter


def take_over(segmenter: Segmenter, folder: Path) -> None:
    """Fill ``segmenter`` from the export of a run with fewer names or without regions; what that run lacks stays new.

    Raises WeightsError for a folder without weights, or with weights of other sizes.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise WeightsError(
            f"{path}: there is no such file; start_from.segmenter names the export of a segmenter's run."
        )
    _fill(segmenter, load_file(path))


def _fill(segmenter: Segmenter, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into the module; of the vocabulary only the rows that the state has."""
    known = segmenter.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in known and name != _VOCABULARY}
    rows = state[_VOCABULARY]
    fitting[_VOCABULARY] = torch.cat([rows, known[_VOCABULARY][len(rows) :]])
    segmenter.load_state_dict(fitting, strict=False)


def noisy_rows(segmenter: Segmenter, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Links ``[images, groups, link_width]`` of rows ``[images, groups]``, as inexact as the MLLM's will be.

    Also their mask ``[images, groups]``: rows below 0 are padding.
    """
    mask, weight = rows >= 0, segmenter.vocabulary.weight
    links = weight[rows.clamp(min=0)]
    return links + torch.randn_like(links) * weight.detach().std() * LINK_NOISE, mask


def _marked_row(thing: SceneObject, rng: np.random.Generator) -> int:
    """What a marked thing is called: mostly just a region, else by its name, as in "dog 2"."""
    return CATEGORY_INDEX[thing.category.key] if rng.random() < _NAMED_SHARE else REGION_ROW


def _look(scene: Scene, thing: int, rng: np.random.Generator) -> RegionPoints:
    kind = MARK_KINDS[int(rng.integers(len(MARK_KINDS)))]
    region = draw_mark(scene.objects[thing], kind, rng)
    points = region_points(region_mask(region, scene.height, scene.width))
    return points.scaled(max(scene.height, scene.width))


def pad_masks(samples: Sequence[tuple[tuple[Tensor, Tensor], Tensor]]) -> SegmentationTargets:
    """Stack ``image_targets`` and ``image_masks`` of several images."""
    targets = pad_targets([boxes for boxes, _ in samples])
    side = samples[0][1].shape[-1]
    masks = torch.zeros(*targets.mask.shape, side, side, dtype=torch.bool)
    for row, (_, own) in enumerate(samples):
        masks[row, : len(own)] = own
    return SegmentationTargets(targets.boxes, targets.groups, targets.mask, targets.normaliser, masks)


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
