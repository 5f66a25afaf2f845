"""Trains the language model alone on conversations about layouts: which words to route, in what order, and no sight.

Copying a list of names and answering from an observation need no pixels, and without image tokens and a vision tower a
step costs a fraction. The image of every question is there but takes no token. Links learn the vocabularies of the
decoders that the recipe names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from services.trainer.alignment import RowsRight, alignment_term
from services.trainer.chat_stage import (
    LANGUAGE_PARTS,
    language_term,
    phrase_figures,
    phrases_right,
    read,
    start_mllm,
)
from services.trainer.mllm_samples import LanguageBatch, RenderedConversation, render_conversation, split_by_length
from services.trainer.recipe import Recipe
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.conversations import draw_conversation
from services.trainer.scenes.layouts import random_layout
from services.trainer.scenes.scene import Scene
from services.trainer.stage import SceneStage
from services.trainer.vocabularies import load_vocabularies

# Tasks whose answers follow from the words, or from the observation, alone. Lists are the hardest to learn.
_TASKS = {
    "fast_path": 0.15,
    "detect": 0.03,
    "detect_several": 0.2,
    "detect_absent": 0.02,
    "refer": 0.15,
    "count": 0.07,
    "presence": 0.05,
    "compare": 0.15,
    "segment": 0.04,
    "segment_several": 0.12,
    "segment_referred": 0.06,
    "boxes_and_masks": 0.25,
    "several_tools": 0.4,
    "refer_back": 0.2,
    "draw": 0.2,
    "draw_fast": 0.1,
    "edit": 0.2,
    "edit_fast": 0.1,
    "pose": 0.02,
    "pose_places": 0.2,
    "pose_fast": 0.03,
    "follow_up": 0.08,
    "talk": 0.015,
    "no_image": 0.015,
}


class WordsStage(SceneStage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.mllm, self.tokenizer = start_mllm(recipe)
        self.vocabularies = load_vocabularies(recipe.vocabularies)
        self.model = nn.ModuleDict({"mllm": self.mllm})

    def compose(self, composer: Composer, seed: int) -> Scene:
        """A layout: no pixel is needed."""
        del composer
        return random_layout(np.random.default_rng((seed, 5)))

    def prepare(self, scene: Scene, seed: int) -> list[RenderedConversation]:
        """Sample conversations about a layout."""
        rng = np.random.default_rng((seed, 6))
        return [
            render_conversation(draw_conversation(scene, rng, _TASKS), self.tokenizer, -1, tokens_per_image=0)
            for _ in range(self.recipe.data.extra_conversations + 1)
        ]

    def collate(self, samples: Sequence[list[RenderedConversation]]) -> list[LanguageBatch]:
        """See ``Stage``."""
        conversations = [conversation for sample in samples for conversation in sample]
        return split_by_length(conversations, LANGUAGE_PARTS, self.tokenizer.pad_id)

    def losses(self, batch: list[LanguageBatch]) -> dict[str, Tensor]:
        """See ``Stage``."""
        words, states = language_term(self.mllm, batch, None)
        device = self.mllm.query_start.device
        vocabularies = {name: vocabulary.to(device) for name, vocabulary in self.vocabularies.items()}
        return {"language": words, "alignment": alignment_term(self.mllm, batch, states, vocabularies)}

    @torch.no_grad()
    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """See ``phrase_figures`` and ``RowsRight``."""
        was_training = self.mllm.training
        self.mllm.eval()
        right: dict[str, list[bool]] = defaultdict(list)
        rows_right = RowsRight(self.vocabularies)
        for part in self.collate([self.prepare(scene, scene.seed) for scene in scenes]):
            hidden = read(self.mllm, part, None)
            rows_right.add(self.mllm, [part], [hidden])
            for task, is_right in phrases_right(self.mllm, part, hidden, self.tokenizer.phrase_start_id):
                right[task].append(is_right)
        self.mllm.train(was_training)
        return {**rows_right.figures(), **phrase_figures(right)}

    def export(self, folder: Path) -> None:
        """MLLM weights as later stages and the service load them."""
        self.mllm.save(folder, self.tokenizer)
