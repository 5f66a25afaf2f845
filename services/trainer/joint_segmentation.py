"""The segmenter in joint training."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from services.mllm.conversation import RoutedPhrase
from services.runtime.decoder import pad_links
from services.runtime.regions import GroupRegions, RegionPoints, pad_regions, region_mask, region_points
from services.segmentation.structures import SegmentationTargets
from services.trainer.calibration import calibrate, calibration_scenes
from services.trainer.detection_samples import image_targets
from services.trainer.detector_stage import share_targets
from services.trainer.joint_decoder import JointDecoder, LinkCategories, LinkPhrases
from services.trainer.joint_detection import by_category, converse
from services.trainer.recipe import Recipe
from services.trainer.referring_rows import Meaning, asked_links, choose_referred
from services.trainer.scenes.answers import MASKS
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.conversation import Conversation, expected_phrases
from services.trainer.scenes.grounds import with_grounds
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Scene
from services.trainer.segmentation_evaluation import evaluate_segmenter
from services.trainer.segmenter_stage import ASKED, image_masks, pad_masks, start_segmenter
from services.trainer.vocabularies import Vocabulary, segment_row

_TASKS = {"segment": 0.3, "segment_several": 0.3, "segment_referred": 0.45, "segment_region": 0.2}
# Share of the scenes on grounds with a name, where the recipe says nothing else.
_NAMED_GROUNDS = 0.6


@dataclass(frozen=True)
class _Sample:
    pixels: Tensor
    # Rows of the groups that follow those of the conversation, and the expressions that follow these.
    beside: list[int]
    referring: tuple[Meaning, ...]
    targets: tuple[Tensor, Tensor]
    # [objects, side, side] bool.
    masks: Tensor
    # Where the conversation's groups are marked, in units of the longer side; none where they are named.
    marks: tuple[RegionPoints, ...]


@dataclass(frozen=True)
class _Batch:
    pixels: Tensor
    beside: list[list[int]]
    referring: list[tuple[Meaning, ...]]
    targets: SegmentationTargets
    regions: GroupRegions


class JointSegmentation(JointDecoder):
    """See ``JointDecoder``."""

    name = "segmentation"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.segmenter = start_segmenter(recipe)
        self.segmenter.vocabulary.requires_grad_(False)
        self.parts = {"segmenter": self.segmenter}
        self.vocabulary = Vocabulary(self.segmenter.vocabulary.weight, segment_row)

    def compose(self, composer: Composer, seed: int) -> Scene:
        """See ``JointDecoder``; grounds are learned where they have names."""
        named_grounds = composer.options.named_grounds or _NAMED_GROUNDS
        return composer.adapted(most_figures=0, named_grounds=named_grounds).compose(seed)

    def converse(self, scene: Scene, rng: np.random.Generator) -> Conversation:
        """See ``JointDecoder``."""
        while True:
            conversation = converse(scene, rng, _TASKS, MASKS)
            # The fast path knows its marks only outside of the words.
            if conversation.task != "segment_region" or conversation.marks:
                return conversation

    def prepare(self, scene: Scene, conversation: Conversation) -> _Sample:
        """Ask for what the conversation routes and, beside it, for all that this does not mean."""
        everything = with_grounds(scene)
        named = {segment_row(phrase) for phrase in expected_phrases(conversation)}
        meant = {everything.objects[index].category.key for group in conversation.targets for index in group}
        others = [row for row, thing in enumerate(ASKED) if row not in named and thing.key not in meant]
        referred = choose_referred(scene, others, np.random.default_rng(scene.seed))
        beside = [row for row in others if row not in referred.categories]
        asked = (members(everything, ASKED[row]) for row in beside)
        groups = [*conversation.targets, *asked, *referred.targets]
        side = max(scene.height, scene.width)
        marks = (region_points(region_mask(mark.region, scene.height, scene.width)) for mark in conversation.marks)
        return _Sample(
            pixels=self.segmenter.prepare(scene.image).pixels,
            beside=beside,
            referring=referred.meanings,
            targets=image_targets(everything, groups),
            masks=image_masks(everything, groups, self.segmenter.config.image_side),
            marks=tuple(points.scaled(side) for points in marks),
        )

    def collate(self, samples: Sequence[_Sample]) -> _Batch:
        """See ``JointDecoder``."""
        return _Batch(
            pixels=torch.stack([sample.pixels for sample in samples]),
            beside=[sample.beside for sample in samples],
            referring=[sample.referring for sample in samples],
            targets=pad_masks([(sample.targets, sample.masks) for sample in samples]),
            regions=pad_regions([list(enumerate(sample.marks)) for sample in samples]),
        )

    def losses(self, links: Sequence[Tensor], batch: _Batch) -> dict[str, Tensor]:
        """See ``JointDecoder``."""
        rows = self.segmenter.vocabulary.weight
        padded, link_mask = pad_links(asked_links(links, rows, batch.beside, batch.referring))
        targets = share_targets(batch.targets, rows.device)
        features = self.segmenter.encode(batch.pixels.to(rows.device))
        outputs = self.segmenter(features, padded, link_mask, targets, batch.regions.to(rows.device))
        return self.segmenter.loss(outputs, targets)

    def evaluate(self, link: LinkPhrases, scenes: Sequence[Scene]) -> dict[str, float]:
        """AP of the masks of the present things, and the mean IoU of things and grounds."""
        return evaluate_segmenter(self.segmenter, by_row(link), scenes)

    def export(self, folder: Path, link: LinkPhrases, composer: Composer) -> None:
        """See ``JointDecoder``."""
        scenes = calibration_scenes(partial(self.compose, composer), self.recipe.calibration_scenes)
        calibrate(self.segmenter, by_category(link, MASKS), scenes)
        deepcopy(self.segmenter).half().save(folder)


def by_row(link: LinkPhrases) -> LinkCategories:
    """Links of the names of things and grounds, in English and Chinese by turns."""

    def links_of(scene: Scene, rows: list[int]) -> Tensor:
        names = [ASKED[row].english if scene.seed % 2 else ASKED[row].chinese for row in rows]
        return link(scene, [RoutedPhrase(MASKS, name) for name in names])

    return links_of
