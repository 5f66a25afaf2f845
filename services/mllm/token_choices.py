"""What was taken at one place of an answer, and what could have been: log-probabilities as clients see them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.mllm.tokenizer import MllmTokenizer


@dataclass(frozen=True)
class TokenChoice:
    """A token and how likely it was among those that could come, at temperature 1."""

    # Its text, with U+FFFD for parts of a character; of a special token its name.
    token: str
    # The bytes that it stands for; none for special tokens.
    encoded: bytes
    log_probability: float
    # The likeliest in its place, best first.
    alternatives: tuple[TokenChoice, ...] = ()


def choice_of(logits: Tensor, token_id: int, alternatives: int, tokenizer: MllmTokenizer) -> TokenChoice:
    """``token_id``, taken from logits ``[vocabulary]``, with at most as many ``alternatives``.

    Tokens that could not come, whose logits are minus infinity, are none.
    """
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    values, ids = log_probabilities.topk(min(alternatives, len(log_probabilities)))
    likeliest = [
        _plain(other, value, tokenizer)
        for other, value in zip(ids.tolist(), values.tolist(), strict=True)
        if value > float("-inf")
    ]
    taken = _plain(token_id, float(log_probabilities[token_id]), tokenizer)
    return TokenChoice(taken.token, taken.encoded, taken.log_probability, tuple(likeliest))


def _plain(token_id: int, log_probability: float, tokenizer: MllmTokenizer) -> TokenChoice:
    encoded = tokenizer.token_bytes(token_id)
    spelt = encoded.decode("utf-8", errors="replace") if encoded else tokenizer.name(token_id)
    return TokenChoice(spelt, encoded, log_probability)
