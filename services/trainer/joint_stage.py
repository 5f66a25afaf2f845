"""Trains MLLM, super link and detector together: detection gradients flow through the link embeddings into the MLLM."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from services.grounding.structures import GroundingTargets
from services.mllm.conversation import RoutedPhrase, fast_path
from services.runtime.decoder import pad_links
from services.trainer.alignment import alignment_term
from services.trainer.calibration import calibrate
from services.trainer.chat_stage import (
    ChatBatch,
    ChatSample,
    collate_chat,
    evaluate_words,
    first_words,
    language_term,
    prepare_chat,
    sight_terms,
    start_dense_head,
    start_mllm,
)
from services.trainer.dense_supervision import category_map, detector_cells, detector_dense_term
from services.trainer.detection_evaluation import evaluate_detector
from services.trainer.detection_samples import image_targets, pad_targets
from services.trainer.detector_stage import share_targets, start_detector
from services.trainer.mllm_samples import one_tile, render_conversation, split_by_length
from services.trainer.recipe import Recipe
from services.trainer.scenes.answers import BOXES
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.conversation import Conversation, expected_phrases, routed_phrases
from services.trainer.scenes.conversations import TASK_WEIGHTS, draw_conversation
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Scene
from services.trainer.stage import Stage, make_composer, save_parts
from services.trainer.vocabularies import Vocabulary, category_of, load_vocabularies

# Tasks whose answers route phrases, and how often the detector's sample is taken from each.
_GROUNDING_TASKS = {
    "fast_path": 0.18,
    "detect": 0.1,
    "detect_several": 0.14,
    # A single category that may be absent is the hardest to judge: nothing beside it could be meant instead.
    "detect_absent": 0.1,
    "refer": 0.14,
    "count": 0.1,
    "presence": 0.14,
    "compare": 0.05,
    "open": 0.05,
}
# Detection losses are tens of times larger; without this weight they would drown the words in the shared layers.
_LANGUAGE_WEIGHT = 4.0
_DETECTOR_DENSE_WEIGHT = 0.5
# Keeps the links of plain category names near the rows that the detector was started with.
_ALIGNMENT_WEIGHT = 4.0
# Scenes that calibrate the exported detector: apart from training, validation and the fixed evaluation set.
_CALIBRATION_SEED_START = 3_000_000_000
_CALIBRATION_SCENES = 1000


@dataclass(frozen=True)
class _Sample:
    chat: ChatSample
    pixels: Tensor
    # Category index of each group that follows those of the conversation.
    beside: list[int]
    cells: tuple[Tensor, ...]
    targets: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Batch:
    chat: ChatBatch
    pixels: Tensor
    beside: list[list[int]]
    cells: tuple[Tensor, ...]
    targets: GroundingTargets
    # Conversations of each scene; the first is the detector's.
    conversations: int


class JointStage(Stage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.mllm, self.tokenizer = start_mllm(recipe)
        self.dense = start_dense_head(recipe, self.mllm)
        self.first_words = first_words(self.tokenizer)
        self.detector, self.detector_dense = start_detector(recipe)
        # Links have learned these rows; they may not move.
        self.detector.vocabulary.requires_grad_(False)
        self.vocabularies = load_vocabularies(recipe.vocabularies)
        self.route = recipe.detector.route
        self.model = nn.ModuleDict(
            {
                "mllm": self.mllm,
                "dense": self.dense,
                "detector": self.detector,
                "detector_dense": self.detector_dense,
            }
        )

    def prepare(self, scene: Scene, seed: int) -> _Sample:
        """One grounding conversation for the detector and further ones for the MLLM."""
        rng = np.random.default_rng((seed, 4))
        conversation = _grounding(scene, rng)
        beside = _beside(scene, conversation)
        groups = [*conversation.targets, *(members(scene, CATEGORIES[category]) for category in beside)]
        config = self.mllm.config
        shown = category_map(scene)
        count = self.recipe.data.extra_conversations
        chat = prepare_chat(scene, shown, seed, count, TASK_WEIGHTS, config, self.tokenizer)
        first = render_conversation(conversation, self.tokenizer, 0, config.tokens_per_tile)
        return _Sample(
            chat=ChatSample(chat.image, (first, *chat.conversations)),
            pixels=self.detector.prepare(scene.image).pixels,
            beside=beside,
            cells=detector_cells(shown, self.recipe.detector.image_side),
            targets=image_targets(scene, groups),
        )

    def collate(self, samples: Sequence[_Sample]) -> _Batch:
        """See ``Stage``."""
        return _Batch(
            chat=collate_chat([sample.chat for sample in samples], self.tokenizer.pad_id),
            pixels=torch.stack([sample.pixels for sample in samples]),
            beside=[sample.beside for sample in samples],
            cells=tuple(torch.stack(level) for level in zip(*(sample.cells for sample in samples), strict=True)),
            targets=pad_targets([sample.targets for sample in samples]),
            conversations=len(samples[0].chat.conversations),
        )

    def losses(self, batch: _Batch) -> dict[str, Tensor]:
        """See ``Stage``."""
        rows = self.detector.vocabulary.weight
        device = rows.device
        tower = self.mllm.tower(batch.chat.tiles.to(device))
        words, states = language_term(self.mllm, batch.chat.language, tower)
        vocabularies = {name: vocabulary.to(device) for name, vocabulary in self.vocabularies.items()}
        vocabularies[self.recipe.detector.name] = Vocabulary(rows, category_of)
        aligned = alignment_term(self.mllm, batch.chat.language, states, vocabularies)
        links = self._links(batch, states)
        padded, link_mask = pad_links(links)
        targets = share_targets(batch.targets, device)
        features = self.detector.encode(batch.pixels.to(device))
        outputs = self.detector(features, padded, link_mask, targets)
        return {
            "language": _LANGUAGE_WEIGHT * words,
            **self.detector.loss(outputs, targets),
            "alignment": _ALIGNMENT_WEIGHT * aligned,
            **sight_terms(self.mllm, self.dense, tower, batch.chat.cells.to(device), self.first_words.to(device)),
            "detector_dense": _DETECTOR_DENSE_WEIGHT * detector_dense_term(self.detector_dense, features, batch.cells),
        }

    @torch.no_grad()
    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """Detection through links of the fast path, and the words."""
        was_training = self.model.training
        self.model.eval()
        figures = evaluate_detector(self.detector, self._fast_path_links, scenes)
        self.model.train(was_training)
        return figures | self._evaluate_words(scenes)

    def export(self, folder: Path) -> None:
        """A folder a service, ``mllm`` and ``detection``, with what a later run needs to go on from there.

        The detector's scores are calibrated first.
        """
        self.model.eval()
        composer = make_composer(self.recipe.data)
        scenes = [composer.compose(_CALIBRATION_SEED_START + number) for number in range(_CALIBRATION_SCENES)]
        with torch.no_grad():
            calibrate(self.detector, self._fast_path_links, scenes)
        # Half precision on disk halves the repository's weights and costs no accuracy; services compute in float32.
        deepcopy(self.mllm).half().save(folder / "mllm", self.tokenizer)
        deepcopy(self.detector).half().save(folder / "detection")
        save_parts(folder / "mllm", dense=self.dense)
        save_parts(folder / "detection", dense=self.detector_dense)

    def _evaluate_words(self, scenes: Sequence[Scene]) -> dict[str, float]:
        return evaluate_words(
            self.mllm,
            self.dense,
            self.tokenizer.phrase_start_id,
            [self.prepare(scene, scene.seed).chat for scene in scenes],
        )

    def _links(self, batch: _Batch, states: Sequence[Tensor]) -> list[Tensor]:
        """Links of every scene's first conversation and the vocabulary beside them, in the order of the scenes."""
        links: list[Tensor | None] = [None] * batch.pixels.shape[0]
        for part, hidden in zip(batch.chat.language, states, strict=True):
            projected = self.mllm.links(hidden, part.groups, self.recipe.detector.name)
            for place, link in zip(part.order, projected, strict=True):
                scene, number = divmod(place, batch.conversations)
                if number == 0:
                    links[scene] = torch.cat([link, self.detector.vocabulary.weight[batch.beside[scene]]])
        return [link for link in links if link is not None]

    def _fast_path_links(self, scene: Scene, categories: list[int]) -> Tensor:
        """Links of category names, in English and Chinese by turns."""
        phrases = [CATEGORIES[c].english if scene.seed % 2 else CATEGORIES[c].chinese for c in categories]
        conversation = Conversation(
            "fast_path", "en", fast_path([RoutedPhrase(self.route, phrase) for phrase in phrases]), ()
        )
        config = self.mllm.config
        rendered = render_conversation(conversation, self.tokenizer, 0, config.tokens_per_tile)
        device = self.detector.logit_bias.device
        part = split_by_length([rendered], 1, self.tokenizer.pad_id)[0]
        features = self.mllm.encode_images(one_tile(scene, config).to(device)).flatten(0, 1)
        hidden = self.mllm(part.input_ids.to(device), part.attention_mask.to(device), features).hidden
        return self.mllm.links(hidden, part.groups, self.recipe.detector.name)[0]


def _grounding(scene: Scene, rng: np.random.Generator) -> Conversation:
    """A conversation whose answer routes phrases to the detector."""
    while True:
        conversation = draw_conversation(scene, rng, _GROUNDING_TASKS)
        if conversation.targets and all(phrase.route == BOXES for phrase in routed_phrases(conversation)):
            return conversation


def _beside(scene: Scene, conversation: Conversation) -> list[int]:
    """Categories of the vocabulary that stand beside the conversation's links: all that these do not mean."""
    named = {category_of(phrase) for phrase in expected_phrases(conversation)}
    meant = {CATEGORY_INDEX[scene.objects[index].category.key] for group in conversation.targets for index in group}
    return [category for category in range(len(CATEGORIES)) if category not in named | meant]
