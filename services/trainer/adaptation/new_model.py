"""An InternVL-shaped model that begins at random, with a tokenizer of the words that it will learn; or its sight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from services.backbones.piip.tower import PyramidTower
from services.mllm.config import DEFAULT_ROUTES, MllmConfig
from services.mllm.model import Mllm
from services.mllm.prompt_format import PromptFormat
from services.mllm.tokenizer import MllmTokenizer
from services.trainer.adaptation.meta_file import load_meta
from services.trainer.adaptation.plan import NewModel, NewTower
from services.trainer.adaptation.rows import read_rows
from superlink.configuration import ConfigurationError

# Like the ``*-hf`` checkpoints: no system message, and boxes in the text.
_PROMPT = PromptFormat(grounds_in_text=True)
# Parts of an ``Mllm`` that depend on its vision tower.
_SIGHT = ("internvl.model.vision_tower.", "internvl.model.multi_modal_projector.", "region_encoder.")


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
    _begin([mllm.internvl.model.language_model, *_seeing(mllm)])
    _begin_words(mllm)
    return mllm, tokenizer


def give_new_tower(folder: Path, tower: NewTower, seed: int) -> tuple[Mllm, MllmTokenizer]:
    """The MLLM in ``folder`` with a new vision tower and projector; its words, links and tokenizer stay.

    Where it takes visual prompts, what encodes them begins anew too. Raises WeightsError, and ConfigurationError for a
    public checkpoint, whose tower is the library's.
    """
    old, tokenizer = Mllm.load(folder)
    if old.config.public is not None:
        raise ConfigurationError("adaptation.new_tower: start_from.mllm is a public checkpoint, which keeps its tower.")
    sight = {"tile_size": tower.tile_size, "vision": tower.vision}
    config = MllmConfig.model_validate(dict(old.config) | sight)
    torch.manual_seed(seed)
    mllm = Mllm(config)
    kept = {name: weight for name, weight in old.state_dict().items() if not name.startswith(_SIGHT)}
    mllm.load_state_dict(kept, strict=False)
    _begin(_seeing(mllm))
    return mllm, tokenizer


def _seeing(mllm: Mllm) -> list[nn.Module]:
    """The projector, and what of the tower ``_begin`` suits: De-focus and CLIP towers have a beginning of their own.

    Of pyramids the branches alone: where interactions look at first is set, and their gates are closed.
    """
    inner = mllm.internvl.model
    tower = inner.vision_tower
    if isinstance(tower, PyramidTower):
        return [inner.multi_modal_projector, tower.pyramid.branches]
    return [inner.multi_modal_projector, *([tower] if isinstance(tower, InternVLVisionModel) else [])]


@torch.no_grad()
def _begin(parts: Sequence[nn.Module]) -> None:
    """Weights that keep the size of what passes through them.

    The library's deviation of 0.02 suits widths of thousands. At one of 96 hardly anything gets through: such models
    learn for 200 steps what is said most before they look at a picture; begun like this they look from the start.
    """
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)


@torch.no_grad()
def _begin_words(mllm: Mllm) -> None:
    for words in (mllm.internvl.model.language_model.embed_tokens.weight, mllm.internvl.lm_head.weight):
        nn.init.normal_(words, std=mllm.hidden_size**-0.5)


def _texts(metas: Sequence[Path]) -> Iterator[str]:
    """What is said in the rows of meta files, and the names of the roles that say it, which headers are made of."""
    for meta in metas:
        for data_set in load_meta(meta).values():
            for row in read_rows(Path(data_set.annotation)):
                yield from ("user", "assistant")
                yield from (message.value for message in row.conversations)
