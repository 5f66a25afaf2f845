"""What the MLLM learns from a scene: tiles, what every cell shows, and conversations as ids and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from services.mllm.config import MllmConfig
from services.mllm.conversation import ImagePart, Rendered, RenderedGroup, render
from services.mllm.model import Mllm, TowerOutput
from services.mllm.region_encoder import RegionBatch, RegionView, view_region
from services.mllm.tiling import Grid, cut_tiles
from services.mllm.tokenizer import MllmTokenizer
from services.runtime.regions import region_mask
from services.trainer.dense_supervision import sample_cells
from services.trainer.scenes.categories import CATEGORY_INDEX
from services.trainer.scenes.conversation import Conversation
from services.trainer.scenes.scene import Scene


@dataclass(frozen=True)
class ImageInput:
    """A scene as the vision tower sees it."""

    # [tiles, 3, tile_size, tile_size].
    tiles: Tensor
    # [rows, columns] category of each cell of the first tile; only for scenes of one tile.
    cells: Tensor


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation ready for the language model."""

    task: str
    rendered: Rendered
    # Number of the scene in the batch whose features it takes, or -1 for none.
    image: int
    # See ``Conversation``.
    drawings: tuple[tuple[int, ...], ...] = ()
    # What is marked on that scene, and the category of each thing.
    regions: tuple[RegionView, ...] = ()
    marked: tuple[int, ...] = ()


def image_input(scene: Scene, shown: NDArray[np.int64], config: MllmConfig) -> ImageInput:
    """Cut a scene into one tile, with the category of every patch; ``shown`` is the scene's ``category_map``."""
    cells = config.tile_size // config.vision.patch_size
    return ImageInput(
        tiles=one_tile(scene, config),
        cells=torch.from_numpy(sample_cells(shown, cells, cells, (1.0, 1.0))),
    )


def one_tile(scene: Scene, config: MllmConfig) -> Tensor:
    """A scene as a single tile: ``[1, 3, tile_size, tile_size]``."""
    return cut_tiles(Image.fromarray(scene.image), 1, config.tile_size)


def render_conversation(
    conversation: Conversation, tokenizer: MllmTokenizer, image: int, tokens_per_image: int
) -> RenderedConversation:
    """Ids and labels of a whole conversation about scene ``image`` of the batch; -1 where no features are taken.

    What is marked on the scene is not looked at here; see ``look_at_marks``.
    """
    shows_image = any(isinstance(part, ImagePart) for turn in conversation.turns for part in turn.parts)
    rendered = render(conversation.turns, tokenizer, [tokens_per_image] if shows_image else [], for_generation=False)
    return RenderedConversation(conversation.task, rendered, image if shows_image else -1, conversation.drawings)


def look_at_marks(
    rendered: RenderedConversation, conversation: Conversation, scene: Scene, config: MllmConfig
) -> RenderedConversation:
    """``rendered`` with what is marked on the scene, which is one tile."""
    masks = [region_mask(mark.region, scene.height, scene.width) for mark in conversation.marks]
    return replace(
        rendered,
        regions=tuple(view_region(mask, Grid(1, 1), config.tile_size) for mask in masks),
        marked=tuple(CATEGORY_INDEX[scene.objects[mark.thing].category.key] for mark in conversation.marks),
    )


def render_marked(
    conversation: Conversation, scene: Scene, config: MllmConfig, tokenizer: MllmTokenizer
) -> RenderedConversation:
    """A conversation about ``scene``, which is one tile and the first of its batch, with what is marked on it."""
    rendered = render_conversation(conversation, tokenizer, 0, config.tokens_per_tile)
    return look_at_marks(rendered, conversation, scene, config)


@dataclass(frozen=True)
class LanguageBatch:
    """Right-padded conversations of similar length."""

    # [conversations, length] each.
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    # For every conversation the scene whose features it takes, or -1.
    images: tuple[int, ...]
    groups: tuple[tuple[RenderedGroup, ...], ...]
    drawings: tuple[tuple[tuple[int, ...], ...], ...]
    tasks: tuple[str, ...]
    # Place of every conversation in the list that was split.
    order: tuple[int, ...]
    # All conversations' regions in order, on the tiles of their scenes, and the category of every marked thing; None
    # where nothing is marked.
    regions: RegionBatch | None = None
    marked: tuple[int, ...] = ()


def split_by_length(conversations: Sequence[RenderedConversation], parts: int, pad_id: int) -> list[LanguageBatch]:
    """Sort conversations by length and cut them into ``parts`` batches, so that little is spent on padding."""
    order = np.argsort([len(conversation.rendered.input_ids) for conversation in conversations], kind="stable")
    return [
        _pad([conversations[index] for index in chunk], tuple(int(index) for index in chunk), pad_id)
        for chunk in np.array_split(order, min(parts, len(conversations)))
    ]


def gather_features(features: Tensor, images: Sequence[int]) -> Tensor | None:
    """Image features ``[image tokens, hidden]`` in the order in which a batch's conversations take them.

    ``features`` is ``[scenes, tokens, hidden]``. None when no conversation shows an image.
    """
    shown = [image for image in images if image >= 0]
    return features[shown].flatten(0, 1) if shown else None


def gather_regions(mllm: Mllm, part: LanguageBatch, tower: TowerOutput) -> Tensor | None:
    """Embeddings ``[regions, hidden]`` of all that is marked in a batch's conversations; ``tower`` saw the scenes."""
    return None if part.regions is None else mllm.encode_regions(tower, part.regions.to(tower.pixels.device))


def _pad(conversations: Sequence[RenderedConversation], order: tuple[int, ...], pad_id: int) -> LanguageBatch:
    longest = max(len(conversation.rendered.input_ids) for conversation in conversations)
    input_ids = torch.full((len(conversations), longest), pad_id, dtype=torch.long)
    labels = torch.full((len(conversations), longest), -100, dtype=torch.long)
    attention_mask = torch.zeros(len(conversations), longest, dtype=torch.long)
    for row, conversation in enumerate(conversations):
        length = len(conversation.rendered.input_ids)
        input_ids[row, :length] = torch.tensor(conversation.rendered.input_ids)
        labels[row, :length] = torch.tensor(conversation.rendered.labels)
        attention_mask[row, :length] = 1
    return LanguageBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        images=tuple(conversation.image for conversation in conversations),
        groups=tuple(tuple(conversation.rendered.groups) for conversation in conversations),
        drawings=tuple(conversation.drawings for conversation in conversations),
        tasks=tuple(conversation.task for conversation in conversations),
        order=order,
        regions=_stack_regions(conversations),
        marked=tuple(category for conversation in conversations for category in conversation.marked),
    )


def _stack_regions(conversations: Sequence[RenderedConversation]) -> RegionBatch | None:
    views = [(view, conversation.image) for conversation in conversations for view in conversation.regions]
    return RegionBatch.of([view for view, _ in views], [image for _, image in views]) if views else None
