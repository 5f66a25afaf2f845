"""Softmax attention whose logits decay with the distance (De-focus, eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Queries at a time: later keys than a block's last are never looked at, and no square of the whole sequence is held.
_BLOCK = 128


def decayed_attention(query: Tensor, key: Tensor, value: Tensor, decay: Tensor | None, block: int = _BLOCK) -> Tensor:
    """Causal attention ``[batch, heads, queries, width]``; the queries belong to the last keys.

    The logit of token t looking at s is <query_t, key_s> / sqrt(width) times exp(decay (t - s)), before the softmax:
    far logits go to 0, not to minus infinity, so that attention gets flatter with distance and nothing is masked.
    ``decay`` is ``[heads]``, at most 0; None is plain causal attention. ``block`` queries are worked on at a time.
    """
    if decay is None:
        return _plain(query, key, value)
    queries, keys = query.shape[2], key.shape[2]
    query = query * query.shape[3] ** -0.5
    place = torch.arange(keys, device=query.device)
    mixed = []
    for first in range(0, queries, block):
        part = query[:, :, first : first + block]
        begin = keys - queries + first
        end = begin + part.shape[2]
        distance = place[begin:end, None] - place[:end]
        fading = torch.exp(decay[:, None, None] * distance.clamp(min=0))
        unseen = query.new_zeros(distance.shape).masked_fill_(distance < 0, -torch.inf)
        logits = torch.addcmul(unseen, part @ key[:, :, :end].mT, fading)
        mixed.append(logits.softmax(dim=-1) @ value[:, :, :end])
    return torch.cat(mixed, dim=2)


def _plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    if queries == keys:
        return scaled_dot_product_attention(query, key, value, is_causal=True)
    place = torch.arange(keys, device=query.device)
    seen = place[keys - queries :, None] >= place
    return scaled_dot_product_attention(query, key, value, attn_mask=seen)
