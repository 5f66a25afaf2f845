"""Trains the MLLM alone on conversations about scenes: words, routing tokens and sight, without any decoder.

Its links learn the vocabularies of the decoders that the recipe names.

The tower and the image tokens are also supervised densely, since sparse answers teach a small tower next to nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from services.mllm.config import DEFAULT_ROUTES, MllmConfig
from services.mllm.conversation import IGNORED, RenderedGroup
from services.mllm.extension import load_with_new_link, load_with_routes
from services.mllm.model import Mllm, MllmOutput, TowerOutput, language_loss
from services.mllm.super_link import Route
from services.mllm.tokenizer import MllmTokenizer
from services.runtime.weights import load_weights
from services.trainer.alignment import RowsRight, alignment_term
from services.trainer.dense_supervision import GROUND, DenseHead, category_map, word_term
from services.trainer.distributed import mean_over_ranks
from services.trainer.mllm_samples import (
    ImageInput,
    LanguageBatch,
    RenderedConversation,
    gather_features,
    gather_regions,
    image_input,
    render_marked,
    split_by_length,
)
from services.trainer.recipe import Recipe
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.conversations import TASK_WEIGHTS, draw_conversation
from services.trainer.scenes.layouts import all_texts
from services.trainer.scenes.scene import Scene
from services.trainer.stage import SceneStage, save_parts
from services.trainer.vocabularies import Vocabulary, load_vocabularies
from superlink.configuration import ConfigurationError

_VOCABULARY = 2048
_TOKENIZER_TEXTS = 30_000
# Parts of a batch, by length: the fewer, the more padding.
LANGUAGE_PARTS = 8
# Lists and answers with several tools are what is learned last.
_TASKS = TASK_WEIGHTS | {
    "detect_several": 0.4,
    "boxes_and_masks": 0.5,
    "several_tools": 1.9,
    "refer_back": 0.45,
    "compare": 0.14,
    "count": 0.12,
    "draw": 0.15,
    "draw_fast": 0.14,
    "edit": 0.15,
    "edit_fast": 0.14,
    "pose_places": 0.3,
    "talk": 0.03,
    "open": 0.25,
    "caption": 0.12,
    "count_without_tools": 0.07,
    "presence_without_tools": 0.07,
}
_DENSE_WEIGHT = 0.5
_WORD_WEIGHT = 0.5
_REGION_WEIGHT = 0.5


@dataclass(frozen=True)
class ChatSample:
    """One scene and what is said about it."""

    image: ImageInput
    conversations: tuple[RenderedConversation, ...]


@dataclass(frozen=True)
class ChatBatch:
    """Scenes and the conversations about them, grouped by length."""

    tiles: Tensor
    cells: Tensor
    language: list[LanguageBatch]


class ChatStage(SceneStage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.mllm, self.tokenizer = start_mllm(recipe)
        self.dense = start_dense_head(recipe, self.mllm)
        self.model = nn.ModuleDict({"mllm": self.mllm, "dense": self.dense})
        self.first_words = first_words(self.tokenizer)
        self.vocabularies = load_vocabularies(recipe.vocabularies)

    def prepare(self, scene: Scene, seed: int) -> ChatSample:
        """Sample conversations about a scene."""
        count = self.recipe.data.extra_conversations + 1
        return prepare_chat(scene, category_map(scene), seed, count, _TASKS, self.mllm.config, self.tokenizer)

    def collate(self, samples: Sequence[ChatSample]) -> ChatBatch:
        """See ``Stage``."""
        return collate_chat(samples, self.tokenizer.pad_id)

    def losses(self, batch: ChatBatch) -> dict[str, Tensor]:
        """See ``Stage``."""
        device = self.mllm.query_start.device
        tower = self.mllm.tower(batch.tiles.to(device))
        language, states = language_term(self.mllm, batch.language, tower)
        cells, words = batch.cells.to(device), self.first_words.to(device)
        vocabularies = {name: vocabulary.to(device) for name, vocabulary in self.vocabularies.items()}
        return {
            "language": language,
            "alignment": alignment_term(self.mllm, batch.language, states, vocabularies),
            "region": region_term(self.mllm, batch.language, tower, words),
            **sight_terms(self.mllm, self.dense, tower, cells, words),
        }

    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """See ``evaluate_words``."""
        samples = [self.prepare(scene, scene.seed) for scene in scenes]
        return evaluate_words(self.mllm, self.dense, self.tokenizer.phrase_start_id, samples, self.vocabularies)

    def export(self, folder: Path) -> None:
        """MLLM weights as the service loads them, and the dense head beside them."""
        self.mllm.save(folder, self.tokenizer)
        save_parts(folder, dense=self.dense)


def start_mllm(recipe: Recipe) -> tuple[Mllm, MllmTokenizer]:
    """The MLLM of an earlier run, with the routes that it lacks, or a new one with a tokenizer of the recipe's text.

    With ``start_from.stem`` it takes the first stages of that detector's backbone as its convolutional stem. Raises
    ConfigurationError where the earlier run's super link is not the one that the recipe describes.
    """
    routes, tables = planned_routes(recipe), recipe.link.query_tables
    adapter_version = recipe.detector.adapter_version
    if "mllm" not in recipe.start_from:
        queries = {route.token: route.queries for route in routes}
        tokenizer = MllmTokenizer.train(all_texts(recipe.seed, _TOKENIZER_TEXTS), _VOCABULARY, queries)
        config = MllmConfig.for_tokenizer(
            tokenizer, adapter_version=adapter_version, routes=routes, query_tables=tables, fold_capitals=True
        )
        mllm = Mllm(config)
    elif recipe.link.begins_anew:
        mllm, tokenizer = load_with_new_link(recipe.start_from["mllm"], routes, adapter_version, tables)
    else:
        mllm, tokenizer = load_with_routes(recipe.start_from["mllm"], routes)
        _check_link(mllm.config, recipe)
    if "stem" in recipe.start_from:
        copy_stem(load_file(recipe.start_from["stem"] / "model.safetensors"), mllm)
    return mllm, tokenizer


def planned_routes(recipe: Recipe) -> tuple[Route, ...]:
    """All routes, those of decoders that find things with as many queries as the recipe gives a group of theirs."""
    queries = {
        "detection": recipe.detector.queries_per_group,
        "segmentation": recipe.segmenter.queries_per_group,
        "pose": recipe.pose.queries_per_group,
    }
    return tuple(
        route.model_copy(update={"queries": queries.get(route.decoder, route.queries)}) for route in DEFAULT_ROUTES
    )


def _check_link(config: MllmConfig, recipe: Recipe) -> None:
    """The recipe has no say in queries of routes that are not planned, such as those of the diffusion tool."""
    own = config.queries_by_route
    differences = [
        f"{route.token} has {own[route.token]} queries there and {route.queries} here"
        for route in planned_routes(recipe)
        if route.pooled and own[route.token] != route.queries
    ]
    if config.query_tables != recipe.link.query_tables:
        differences.append(f"tables are {config.query_tables} there and {recipe.link.query_tables} here")
    if differences:
        raise ConfigurationError(
            f"start_from.mllm: the super link of {recipe.start_from['mllm']} is not the recipe's: "
            f"{', '.join(differences)}. Describe that one (link.query_tables, queries_per_group of the decoders), or "
            "set link.begins_anew: true."
        )


def start_dense_head(recipe: Recipe, mllm: Mllm) -> DenseHead:
    """The dense head over the tower's grid, from an earlier run where that has one."""
    dense = DenseHead(mllm.config.vision.hidden_size)
    if "mllm" in recipe.start_from and (folder := recipe.start_from["mllm"] / "training" / "dense").is_dir():
        load_weights(dense, folder)
    return dense


def first_words(tokenizer: MllmTokenizer) -> Tensor:
    """The first token of every category's English and Chinese name: ``[categories, 2]``."""
    return torch.tensor(
        [
            [tokenizer.encode_text(category.english)[0], tokenizer.encode_text(category.chinese)[0]]
            for category in CATEGORIES
        ]
    )


def copy_stem(detector: dict[str, Tensor], mllm: Mllm) -> None:
    """Give the tower's stem the weights of a detector's backbone up to stride 16."""
    renamed = {}
    for name, tensor in detector.items():
        parts = name.split(".")
        if parts[0] != "backbone":
            continue
        if parts[1] in ("conv1", "bn1"):
            renamed[".".join(["stem", "0" if parts[1] == "conv1" else "1", *parts[2:]])] = tensor
        elif parts[1] in ("layer1", "layer2", "layer3"):
            inner = {"bn1": "norm1", "bn2": "norm2", "downsample": "shortcut"}.get(parts[3], parts[3])
            renamed[".".join(["stages", str(int(parts[1][-1]) - 1), parts[2], inner, *parts[4:]])] = tensor
    mllm.internvl.model.vision_tower.embeddings.patch_embeddings.stem.load_state_dict(renamed)


def prepare_chat(
    scene: Scene,
    shown: NDArray[np.int64],
    seed: int,
    count: int,
    tasks: Mapping[str, float],
    config: MllmConfig,
    tokenizer: MllmTokenizer,
) -> ChatSample:
    """Sample ``count`` conversations about a scene, their tasks drawn by weight; ``shown`` is its ``category_map``."""
    rng = np.random.default_rng((seed, 3))
    conversations = [draw_conversation(scene, rng, tasks) for _ in range(count)]
    return ChatSample(
        image=image_input(scene, shown, config),
        conversations=tuple(render_marked(conversation, scene, config, tokenizer) for conversation in conversations),
    )


def collate_chat(samples: Sequence[ChatSample], pad_id: int) -> ChatBatch:
    """Stack scenes; conversations point to the scenes of the batch."""
    conversations = [
        replace(conversation, image=number if conversation.image >= 0 else -1)
        for number, sample in enumerate(samples)
        for conversation in sample.conversations
    ]
    return ChatBatch(
        tiles=torch.cat([sample.image.tiles for sample in samples]),
        cells=torch.stack([sample.image.cells for sample in samples]),
        language=split_by_length(conversations, LANGUAGE_PARTS, pad_id),
    )


def language_term(mllm: Mllm, parts: Sequence[LanguageBatch], tower: TowerOutput | None) -> tuple[Tensor, list[Tensor]]:
    """The mean cross-entropy over all ranks' supervised tokens, and the hidden states of every part.

    Without ``tower`` the conversations are about words alone.
    """
    device = mllm.query_start.device
    total, count, states = torch.zeros((), device=device), 0.0, []
    for part in parts:
        hidden = read(mllm, part, tower)
        loss, supervised = language_loss(mllm, hidden, part.labels.to(device))
        total, count = total + loss, count + float(supervised)
        states.append(hidden)
    return total / max(1.0, mean_over_ranks(count, device)), states


def read(mllm: Mllm, part: LanguageBatch, tower: TowerOutput | None) -> Tensor:
    """States ``[conversations, length, hidden]`` of conversations about scenes that ``tower`` saw, or about none."""
    device = mllm.query_start.device
    sight: tuple[Tensor | None, Tensor | None] = (None, None)
    if tower is not None:
        sight = gather_features(tower.features, part.images), gather_regions(mllm, part, tower)
    output: MllmOutput = mllm(part.input_ids.to(device), part.attention_mask.to(device), *sight)
    return output.hidden


def region_term(mllm: Mllm, parts: Sequence[LanguageBatch], tower: TowerOutput, words: Tensor) -> Tensor:
    """Cross-entropy that makes every region read like the name of what is marked, as ``word_term`` does for tokens.

    ``words`` are the names' ``first_words``. Zero where nothing is marked.
    """
    seen = [features for part in parts if (features := gather_regions(mllm, part, tower)) is not None]
    if not seen:
        return tower.features.new_zeros(())
    marked = torch.tensor([category for part in parts for category in part.marked], device=words.device)
    chances = mllm.logits(torch.cat(seen)).float().log_softmax(dim=-1).gather(1, words[marked])
    return -_REGION_WEIGHT * chances.mean()


def sight_terms(mllm: Mllm, dense: DenseHead, tower: TowerOutput, cells: Tensor, words: Tensor) -> dict[str, Tensor]:
    """Dense supervision of the tower's grid and of the image tokens; ``words`` are the names' ``first_words``."""
    return {
        "dense": _DENSE_WEIGHT * dense(tower.grid, cells),
        "word": _WORD_WEIGHT * word_term(mllm.logits(tower.features), cells, words),
    }


@torch.no_grad()
def evaluate_words(
    mllm: Mllm,
    dense: DenseHead,
    phrase_start_id: int,
    samples: Sequence[ChatSample],
    vocabularies: Mapping[str, Vocabulary],
) -> dict[str, float]:
    """See ``phrase_figures`` and ``RowsRight``; also the share of cells that the tower sees rightly."""
    was_training = mllm.training
    mllm.eval()
    device = mllm.query_start.device
    right: dict[str, list[bool]] = defaultdict(list)
    rows_right = RowsRight(vocabularies)
    cells_right = cells_total = 0
    for start in range(0, len(samples), 16):
        batch = collate_chat(samples[start : start + 16], mllm.config.pad_token_id)
        tower = mllm.tower(batch.tiles.to(device))
        cells = batch.cells.to(device)
        shown = cells != GROUND
        cells_right += int((dense.classifier(tower.grid).argmax(dim=1) == cells)[shown].sum())
        cells_total += int(shown.sum())
        for part in batch.language:
            hidden = read(mllm, part, tower)
            rows_right.add(mllm, [part], [hidden])
            for task, is_right in phrases_right(mllm, part, hidden, phrase_start_id):
                right[task].append(is_right)
    mllm.train(was_training)
    return {"cells": cells_right / max(1, cells_total), **rows_right.figures(), **phrase_figures(right)}


def phrase_figures(right: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """Share of conversations whose routed phrases are all right when teacher-forced: of all, and by task."""
    if not right:
        return {}
    everything = [result for results in right.values() for result in results]
    by_task = {f"phrases_{task}": float(np.mean(results)) for task, results in sorted(right.items())}
    return {"phrases": float(np.mean(everything)), **by_task}


def phrases_right(mllm: Mllm, part: LanguageBatch, hidden: Tensor, phrase_start_id: int) -> Iterator[tuple[str, bool]]:
    """For every conversation that routes: its task, and whether all its phrases are right when teacher-forced."""
    guesses = mllm.logits(hidden).argmax(dim=-1)[:, :-1].cpu()
    for row, (task, groups) in enumerate(zip(part.tasks, part.groups, strict=True)):
        labels = part.labels[row, 1:]
        judged = _phrase_positions(labels, groups, phrase_start_id)
        if groups:
            yield task, bool((guesses[row] == labels)[judged].all())


def _phrase_positions(labels: Tensor, groups: Sequence[RenderedGroup], phrase_start_id: int) -> Tensor:
    """Which of ``labels`` (shifted by one) belong to routed phrases: what follows ``<ref>`` up to the routing token."""
    inside = torch.zeros_like(labels, dtype=torch.bool)
    for group in groups:
        # Label i is the token at place i + 1, and the routing token stands right before the first query.
        position = group.positions[0] - 2
        if int(labels[position]) == IGNORED:
            continue  # Only remembered.
        while position >= 0 and int(labels[position]) != phrase_start_id:
            inside[position] = True
            position -= 1
    return inside
