"""The diffusion tool in joint training."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.mllm.conversation import RoutedPhrase
from services.trainer.diffusion_evaluation import evaluate_diffuser
from services.trainer.diffusion_losses import drawing_losses
from services.trainer.diffusion_samples import DrawingEncoder
from services.trainer.diffusion_stage import average_of, load_judge, start_diffuser
from services.trainer.joint_decoder import JointDecoder, LinkPhrases
from services.trainer.recipe import Recipe
from services.trainer.scenes.answers import EDITS, IMAGES
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.conversation import Conversation
from services.trainer.scenes.drawing_requests import drawing_wish, request_drawing
from services.trainer.scenes.drawings import DRAWING_OPTIONS, Drawing, draw_drawing, draw_edit_drawing
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.sprites import load_sprites
from services.trainer.scenes.templates import LANGUAGES
from services.trainer.vocabularies import Vocabulary

# Keeps the drawings' random numbers apart from the conversations'.
_STREAM = 6


@dataclass(frozen=True)
class _Subject:
    # What the MLLM sees: an edit's source; of a drawing some scene that has nothing to do with it.
    scene: Scene
    drawing: Drawing


class JointDiffusion(JointDecoder):
    """See ``JointDecoder``. Its vocabulary, its autoencoder and the backbone that sees sources do not learn."""

    name = "diffusion"

    def __init__(self, recipe: Recipe) -> None:
        self.diffuser = start_diffuser(recipe)
        # What is evaluated and exported.
        self.average = average_of(self.diffuser)
        self.parts = {"diffuser": self.diffuser, "diffuser_average": self.average}
        # A conversation's words come with the rows that they mean.
        self.vocabulary = Vocabulary(self.diffuser.vocabulary.weight, lambda _: -1)
        self.detector = load_judge(recipe)
        self.composer = Composer(load_sprites(recipe.data.sprites), DRAWING_OPTIONS)
        self._encoder = DrawingEncoder(self.diffuser, self.composer)

    def compose(self, composer: Composer, seed: int) -> _Subject:
        """See ``JointDecoder``; half drawings, half edits."""
        rng = np.random.default_rng((seed, _STREAM))
        if seed % 2 == 0:
            return _Subject(super().compose(composer, seed), draw_drawing(self.composer, rng))
        edit = draw_edit_drawing(self.composer, seed, rng)
        return _Subject(edit.source or edit.target, edit)

    def shown(self, subject: _Subject) -> Scene:
        """See ``JointDecoder``."""
        return subject.scene

    def converse(self, subject: _Subject, rng: np.random.Generator) -> Conversation:
        """See ``JointDecoder``."""
        return request_drawing(subject.drawing, rng)

    def prepare(self, subject: _Subject, conversation: Conversation) -> Drawing:  # noqa: ARG002  (it asks for just this)
        """Nothing more: encoding needs the model."""
        return subject.drawing

    def collate(self, samples: Sequence[Drawing]) -> list[Drawing]:
        """See ``JointDecoder``."""
        return list(samples)

    def losses(self, links: Sequence[Tensor], batch: list[Drawing]) -> dict[str, Tensor]:
        """See ``JointDecoder``; every conversation asks for one image."""
        # The last step of this decoder has changed the weights.
        self.average.update_parameters(self.diffuser)
        encoded = [self._encoder.encode(drawing) for drawing in batch]
        return drawing_losses(self.diffuser, torch.cat(list(links)), encoded)

    def evaluate(self, link: LinkPhrases, subjects: Sequence[_Subject]) -> dict[str, float]:
        """See ``evaluate_diffuser``."""
        asked = [subject.drawing for subject in subjects]
        drawings = [drawing for drawing in asked if drawing.source is None]
        edits = [drawing for drawing in asked if drawing.source is not None]
        averaged: Any = self.average.module
        return evaluate_diffuser(averaged, self.detector, drawings, edits, lambda part: links_of(link, part))

    def export(self, folder: Path, link: LinkPhrases, composer: Composer) -> None:  # noqa: ARG002  (it has no scores)
        """See ``JointDecoder``."""
        averaged: Any = deepcopy(self.average.module)
        averaged.half().save(folder)


def links_of(link: LinkPhrases, drawings: Sequence[Drawing]) -> Tensor:
    """Links ``[drawings, queries, link_width]`` of the drawings' canonical words, by turns in English and Chinese."""
    links = []
    for number, drawing in enumerate(drawings):
        wish = drawing_wish(drawing, LANGUAGES[number % len(LANGUAGES)], np.random.default_rng(number))
        links.append(link(drawing.source, [RoutedPhrase(EDITS if drawing.source else IMAGES, wish.phrase)]))
    return torch.cat(links)
