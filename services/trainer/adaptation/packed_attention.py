"""Running packs through the MLLM's language model: attention sample by sample, with no mask over the whole pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from services.mllm.conversation import IGNORED
from services.mllm.model import Mllm
from services.trainer.adaptation.packing import PackedBatch

# The name under which transformers finds ``packed_attention``.
PACKED_ATTENTION = "superlink_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lengths: Sequence[int] | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention of ``[1, heads, tokens, head width]`` within samples of ``lengths`` tokens each.

    Without ``lengths`` it is the library's own. Returns ``[1, tokens, heads, head width]``.
    """
    if lengths is None:
        attended, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return attended, weights
    parts = zip(*(torch.split(tensor, list(lengths), dim=2) for tensor in (query, key, value)), strict=True)
    attended = torch.cat(
        [
            nn.functional.scaled_dot_product_attention(
                queries,
                keys,
                values,
                dropout_p=settings.get("dropout", 0.0),
                is_causal=True,
                scale=settings["scaling"],
                enable_gqa=key.shape[1] != query.shape[1],
            )
            for queries, keys, values in parts
        ],
        dim=2,
    )
    return attended.transpose(1, 2).contiguous(), None


def use_packed_attention(mllm: Mllm) -> None:
    """Prepare ``mllm`` for ``run_packed``. Whole batches run as before; a running batch of the service does not."""
    mllm.internvl.model.language_model.set_attn_implementation(PACKED_ATTENTION)


def run_packed(mllm: Mllm, pack: PackedBatch, image_features: Tensor | None) -> Tensor:
    """States ``[1, tokens, hidden]`` of a pack; ``image_features`` ``[image tokens, hidden]`` of all its images.

    ``use_packed_attention`` comes first. Raises ValueError where tokens and features of images do not match in number:
    training on would silently learn from the wrong pictures.
    """
    output = mllm.internvl.model.language_model(
        inputs_embeds=mllm.embed(pack.input_ids, image_features),
        attention_mask=mllm.no_mask,
        position_ids=pack.position_ids,
        use_cache=False,
        lengths=pack.lengths,
    )
    states: Tensor = output.last_hidden_state
    return states


def packed_losses(mllm: Mllm, states: Tensor, pack: PackedBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy ``[supervised tokens]`` of a pack, and the number of each one's sample, for ``loss_reduction``."""
    targets = pack.labels[:, 1:]
    supervised = targets != IGNORED
    logits = mllm.logits(states[:, :-1][supervised])
    losses = nn.functional.cross_entropy(logits.float(), targets[supervised], reduction="none")
    return losses, pack.samples[:, 1:][supervised]


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
