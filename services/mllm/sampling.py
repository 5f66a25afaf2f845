"""Which token comes next: what may come at all, and how it is picked."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from services.mllm.tokenizer import MllmTokenizer

# Logits divided by less than this would overflow, and an answer that cannot be sampled fails the whole step.
_COLDEST = 1e-6


class WritingState(IntEnum):
    """Where in its answer a row stands; decides which special tokens may follow."""

    # Ordinary text, nothing routed yet in this round.
    TEXT = 0
    # Ordinary text, after at least one group: the model may ask for the results.
    TEXT_ROUTED = 1
    # After <ref>, no word yet.
    PHRASE_OPEN = 2
    # Inside <ref>, with words.
    PHRASE = 3
    # Right after </ref>: the one place for a routing token.
    PHRASE_CLOSED = 4
    PHRASE_CLOSED_ROUTED = 5


@dataclass(frozen=True)
class Sampling:
    """How tokens are picked and when to stop."""

    # 0 is greedy.
    temperature: float = 0.0
    # Smallest set of tokens whose probabilities reach this sum.
    top_p: float = 1.0
    # None draws one.
    seed: int | None = None
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    # Routing tokens that may come; None: every one.
    routes: frozenset[str] | None = None
    # How many of the likeliest tokens to report beside each that was taken; None: no log-probabilities at all.
    top_log_probabilities: int | None = None

    def generator(self) -> torch.Generator:
        """A generator of this request's own, so that the company in a batch never changes an answer."""
        generator = torch.Generator()
        generator.manual_seed((secrets.randbits(63) if self.seed is None else self.seed) % 2**63)
        return generator


class AllowedTokens:
    """What may be sampled in each state.

    Placeholders, image tokens and turn headers never are; a routing token only after a phrase that has words.
    """

    def __init__(self, tokenizer: MllmTokenizer, vocab_size: int, device: torch.device) -> None:
        text = torch.zeros(vocab_size, dtype=torch.bool)
        text[: len(tokenizer)] = True
        text[sorted(tokenizer.special_ids)] = False
        routes = list(tokenizer.route_of_id)
        outside = [tokenizer.im_end_id, tokenizer.phrase_start_id]
        extra: dict[WritingState, list[int]] = {
            WritingState.TEXT: outside,
            WritingState.TEXT_ROUTED: [*outside, tokenizer.observe_id],
            WritingState.PHRASE_OPEN: [],
            WritingState.PHRASE: [tokenizer.phrase_end_id],
            WritingState.PHRASE_CLOSED: [*outside, *routes],
            WritingState.PHRASE_CLOSED_ROUTED: [*outside, tokenizer.observe_id, *routes],
        }
        bias = torch.full((len(WritingState), vocab_size), float("-inf"))
        for state in WritingState:
            bias[state][text] = 0.0
            bias[state][extra[state]] = 0.0
        self._bias = bias.to(device)

    def apply(self, logits: Tensor, states: list[WritingState]) -> Tensor:
        """Logits ``[rows, vocabulary]`` with minus infinity on every token that may not come."""
        if len(states) == 1:
            return logits + self._bias[states[0]]
        return logits + self._bias[states]


def pick(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token from logits ``[vocabulary]`` by temperature and top-p."""
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float().cpu() / max(sampling.temperature, _COLDEST), dim=-1)
    if sampling.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True)
        # A token stays when those before it do not yet reach top_p; the first always stays.
        keep = ordered.cumsum(dim=0) - ordered < sampling.top_p
        kept = torch.where(keep, ordered, 0.0)
        return int(order[torch.multinomial(kept, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


def log_probability(logits: Tensor, token_id: int) -> float:
    """Log-probability of ``token_id`` among the tokens that could come, at temperature 1."""
    return float(torch.log_softmax(logits.float(), dim=-1)[token_id])
