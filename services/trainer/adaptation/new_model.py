"""An InternVL-shaped model that begins at random, with a tokenizer of the words that it will learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from services.mllm.config import DEFAULT_ROUTES, MllmConfig
from services.mllm.model import Mllm
from services.mllm.prompt_format import PromptFormat
from services.mllm.tokenizer import MllmTokenizer
from services.trainer.adaptation.meta_file import load_meta
from services.trainer.adaptation.plan import NewModel
from services.trainer.adaptation.rows import read_rows

# Like the ``*-hf`` checkpoints: no system message, and boxes in the text.
_PROMPT = PromptFormat(grounds_in_text=True)


def make_model(size: NewModel, seed: int) -> tuple[Mllm, MllmTokenizer]:
    """The model and its tokenizer. Raises MetaFileError and RowError for texts that cannot be read."""
    queries = {route.token: route.queries for route in DEFAULT_ROUTES}
    tokenizer = MllmTokenizer.train(_texts(size.texts), size.vocabulary, queries, _PROMPT)
    config = MllmConfig.for_tokenizer(
        tokenizer,
        name="new",
        adapter_version="untrained",
        tile_size=size.tile_size,
        vision=size.vision,
        language=size.language,
    )
    torch.manual_seed(seed)
    mllm = Mllm(config)
    _begin(mllm)
    return mllm, tokenizer


@torch.no_grad()
def _begin(mllm: Mllm) -> None:
    """Weights that keep the size of what passes through them.

    The library's deviation of 0.02 suits widths of thousands. At one of 96 hardly anything gets through: such models
    learn for 200 steps what is said most before they look at a picture; begun like this they look from the start.
    """
    inner = mllm.internvl.model
    parts: list[nn.Module] = [inner.language_model, inner.multi_modal_projector]
    if isinstance(inner.vision_tower, InternVLVisionModel):
        parts.append(inner.vision_tower)
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for words in (inner.language_model.embed_tokens.weight, mllm.internvl.lm_head.weight):
        nn.init.normal_(words, std=mllm.hidden_size**-0.5)


def _texts(metas: Sequence[Path]) -> Iterator[str]:
    """What is said in the rows of meta files, and the names of the roles that say it, which headers are made of."""
    for meta in metas:
        for data_set in load_meta(meta).values():
            for row in read_rows(Path(data_set.annotation)):
                yield from ("user", "assistant")
                yield from (message.value for message in row.conversations)
