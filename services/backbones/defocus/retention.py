"""Retention: causal linear attention with one decay a head (De-focus, eq. 4; Sun et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

# The fastest, or nearly so, at every length (docs/defocus.md has the figures).
_CHUNK = 64


def retention(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, state: Tensor | None = None, chunk: int = _CHUNK
) -> tuple[Tensor, Tensor]:
    """y_t = sum over s <= t of <query_t, key_s> exp(decay (t - s)) value_s, and the state after the last token.

    ``query`` and ``key`` are ``[batch, heads, tokens, width]``, rotated; ``value`` is
    ``[batch, heads, tokens, values]`` and ``decay`` ``[heads]``, at most 0. ``state`` ``[batch, heads, width, values]``
    is what earlier tokens left behind; token by token this is the recurrent form. ``chunk`` tokens at a time are one
    masked square; between chunks only the state is handed on. All exponents are at most 0, so nothing overflows.
    """
    tokens = query.shape[2]
    if state is None:
        state = query.new_zeros(*query.shape[:2], query.shape[3], value.shape[3])
    inner, since_start, until_end = _powers(decay, min(chunk, tokens))
    mixed = []
    for first in range(0, tokens, chunk):
        part = slice(first, first + chunk)
        q, k, v = query[:, :, part], key[:, :, part], value[:, :, part]
        length = q.shape[2]
        near = (q @ k.mT * inner[:, :length, :length]) @ v
        mixed.append(near + q * since_start[:, :length] @ state)
        # Of a shorter chunk the last powers count.
        state = since_start[:, length - 1, None] * state + (k * until_end[:, -length:]).mT @ v
    return torch.cat(mixed, dim=2), state


def _powers(decay: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """exp(decay n) of a chunk: between its tokens ``[heads, length, length]``, from before its first token up to each
    and from each to its last one, both ``[heads, length, 1]``.
    """
    place = torch.arange(length, device=decay.device)
    distance = place[:, None] - place
    by_head = decay[:, None, None]
    inner = torch.exp(by_head * distance.clamp(min=0)).tril()
    column = place[:, None]
    return inner, torch.exp(by_head * (column + 1)), torch.exp(by_head * (length - 1 - column))
