"""Trains MLLM, super link and decoders together: a decoder's gradients flow through the links into the MLLM.

Every step is one decoder's, on all ranks: it alone, beside the MLLM, has samples and gradients in that step, and the
optimiser leaves the parameters and moments of the others as they are (VisionLLM v2, section 4.3 of the supplement,
where moments decay unseen). Which decoder a step belongs to follows from its number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from services.mllm.conversation import RoutedPhrase, fast_path
from services.trainer.alignment import alignment_term
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
from services.trainer.dense_supervision import category_map
from services.trainer.distributed import world_size
from services.trainer.joint_decoder import JointDecoder, LinkPhrases
from services.trainer.joint_detection import JointDetection
from services.trainer.joint_diffusion import JointDiffusion
from services.trainer.joint_pose import JointPose
from services.trainer.joint_segmentation import JointSegmentation
from services.trainer.mllm_samples import LanguageBatch, one_tile, render_conversation, render_marked, split_by_length
from services.trainer.recipe import Recipe
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.conversation import Conversation
from services.trainer.scenes.conversations import TASK_WEIGHTS
from services.trainer.scenes.figures import without_figures
from services.trainer.scenes.scene import Scene
from services.trainer.stage import SceneStage, make_composer, save_parts
from services.trainer.vocabularies import load_vocabularies

# Decoders' losses are tens of times larger; without this weight they would drown the words in the shared layers.
_LANGUAGE_WEIGHT = 4.0
# Keeps the links of plain names near the rows that the decoders were started with.
_ALIGNMENT_WEIGHT = 4.0

_DECODERS: dict[str, Callable[[Recipe], JointDecoder]] = {
    JointDetection.name: JointDetection,
    JointSegmentation.name: JointSegmentation,
    JointPose.name: JointPose,
    JointDiffusion.name: JointDiffusion,
}


@dataclass(frozen=True)
class _Sample:
    # The first conversation is the decoder's.
    chat: ChatSample
    decoder: str
    task: Any


@dataclass(frozen=True)
class _Batch:
    chat: ChatBatch
    decoder: str
    task: Any
    # Conversations of each scene; the first is the decoder's.
    conversations: int


class JointStage(SceneStage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.mllm, self.tokenizer = start_mllm(recipe)
        self.dense = start_dense_head(recipe, self.mllm)
        self.first_words = first_words(self.tokenizer)
        self.decoders: dict[str, JointDecoder] = {name: _DECODERS[name](recipe) for name in recipe.decoders}
        self.vocabularies = load_vocabularies(recipe.vocabularies) | {
            name: decoder.vocabulary for name, decoder in self.decoders.items()
        }
        parts = {name: part for decoder in self.decoders.values() for name, part in decoder.parts.items()}
        self.model = nn.ModuleDict({"mllm": self.mllm, "dense": self.dense, **parts})

    def decoder_of(self, seed: int) -> JointDecoder:
        """The decoder that the sample of ``seed`` is for: the one of its step."""
        step = (seed - self.recipe.data.first_seed) // (self.recipe.schedule.batch_size * world_size())
        shares = np.cumsum(list(self.recipe.decoders.values()))
        drawn = np.random.default_rng((self.recipe.seed, abs(step))).random() * shares[-1]
        return list(self.decoders.values())[int(np.searchsorted(shares, drawn, side="right"))]

    def compose(self, composer: Composer, seed: int) -> Any:
        """What the decoder of this step is asked about."""
        return self.decoder_of(seed).compose(composer, seed)

    def prepare(self, subject: Any, seed: int) -> _Sample:
        """One conversation for the decoder of this step and further ones for the MLLM."""
        return self._sample(self.decoder_of(seed), subject, seed)

    def _sample(self, decoder: JointDecoder, subject: Any, seed: int) -> _Sample:
        conversation = decoder.converse(subject, np.random.default_rng((seed, 4)))
        config, count = self.mllm.config, self.recipe.data.extra_conversations
        scene = without_figures(decoder.shown(subject))
        chat = prepare_chat(scene, category_map(scene), seed, count, TASK_WEIGHTS, config, self.tokenizer)
        first = render_marked(conversation, scene, config, self.tokenizer)
        return _Sample(
            chat=ChatSample(chat.image, (first, *chat.conversations)),
            decoder=decoder.name,
            task=decoder.prepare(subject, conversation),
        )

    def collate(self, samples: Sequence[_Sample]) -> _Batch:
        """See ``Stage``."""
        name = samples[0].decoder
        return _Batch(
            chat=collate_chat([sample.chat for sample in samples], self.tokenizer.pad_id),
            decoder=name,
            task=self.decoders[name].collate([sample.task for sample in samples]),
            conversations=len(samples[0].chat.conversations),
        )

    def losses(self, batch: _Batch) -> dict[str, Tensor]:
        """See ``Stage``."""
        device = self.mllm.query_start.device
        tower = self.mllm.tower(batch.chat.tiles.to(device))
        words, states = language_term(self.mllm, batch.chat.language, tower)
        vocabularies = {name: vocabulary.to(device) for name, vocabulary in self.vocabularies.items()}
        aligned = alignment_term(self.mllm, batch.chat.language, states, vocabularies)
        links = self.links(batch.chat.language, states, batch.decoder, batch.conversations)
        return {
            "language": _LANGUAGE_WEIGHT * words,
            "alignment": _ALIGNMENT_WEIGHT * aligned,
            **self.decoders[batch.decoder].losses(links, batch.task),
            **sight_terms(self.mllm, self.dense, tower, batch.chat.cells.to(device), self.first_words.to(device)),
        }

    def links(
        self, parts: Sequence[LanguageBatch], states: Sequence[Tensor], decoder: str, conversations: int
    ) -> list[Tensor]:
        """Links to ``decoder`` of every scene's first conversation of ``conversations``, in the order of the scenes."""
        first: dict[int, Tensor] = {}
        for part, hidden in zip(parts, states, strict=True):
            for place, link in zip(part.order, self.mllm.links(hidden, part.groups, decoder), strict=True):
                scene, number = divmod(place, conversations)
                if number == 0:
                    first[scene] = link
        return [first[scene] for scene in sorted(first)]

    @torch.no_grad()
    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """Every decoder through links of the fast path, and the words and links of conversations.

        Of ``scenes`` the seeds alone count: each decoder composes subjects of its own. The words are judged on one
        subject a seed, the decoders' by turns.
        """
        was_training = self.model.training
        self.model.eval()
        composer = make_composer(self.recipe.data)
        figures: dict[str, float] = {}
        samples = []
        for turn, decoder in enumerate(self.decoders.values()):
            subjects = [decoder.compose(composer, scene.seed) for scene in scenes]
            figures |= decoder.evaluate(self._linker(decoder.name), subjects)
            for number in range(turn, len(scenes), len(self.decoders)):
                samples.append(self._sample(decoder, subjects[number], scenes[number].seed).chat)
        self.model.train(was_training)
        words = evaluate_words(self.mllm, self.dense, self.tokenizer.phrase_start_id, samples, self.vocabularies)
        return figures | words

    def export(self, folder: Path) -> None:
        """A folder a service, with what a later run needs to go on from there.

        Half precision on disk halves the repository's weights and costs no accuracy; services compute in float32.
        """
        self.model.eval()
        composer = make_composer(self.recipe.data)
        with torch.no_grad():
            for decoder in self.decoders.values():
                decoder.export(folder / decoder.name, self._linker(decoder.name), composer)
        deepcopy(self.mllm).half().save(folder / "mllm", self.tokenizer)
        save_parts(folder / "mllm", dense=self.dense)

    def _linker(self, decoder: str) -> LinkPhrases:
        """Links to ``decoder`` of phrases that the fast path asks."""

        def link(scene: Scene | None, phrases: Sequence[RoutedPhrase]) -> Tensor:
            config, device = self.mllm.config, self.mllm.query_start.device
            conversation = Conversation("fast_path", "en", fast_path(phrases, scene is not None), ())
            rendered = render_conversation(conversation, self.tokenizer, 0, config.tokens_per_tile)
            part = split_by_length([rendered], 1, self.tokenizer.pad_id)[0]
            features = None
            if scene is not None:
                features = self.mllm.encode_images(one_tile(scene, config).to(device)).flatten(0, 1)
            hidden = self.mllm(part.input_ids.to(device), part.attention_mask.to(device), features).hidden
            return self.mllm.links(hidden, part.groups, decoder)[0]

        return link
