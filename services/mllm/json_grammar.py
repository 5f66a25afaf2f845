"""Text that is JSON by a schema: which tokens may come next. Knows the vocabulary, not the model."""

from __future__ import annotations

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

from services.mllm.tokenizer import MllmTokenizer
from superlink.errors import SuperlinkError
from superlink.json_schemas import matcher_of, too_hard

_QUOTE, _BACKSLASH = b'"'[0], b"\\"[0]
_AFTER_NUMBERS = b",}]"
_DIGITS = b"0123456789"


class JsonGrammars:
    """Grammars over the vocabulary of one model."""

    def __init__(self, tokenizer: MllmTokenizer, vocab_size: int) -> None:
        """``vocab_size`` is that of the model's logits, which may be more than the tokenizer's."""
        self.vocab_size = vocab_size
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)), slices=LLTokenizer.json_slices())
        self.token_bytes = tokenizer.token_bytes
        first = [tokenizer.token_bytes(token_id)[:1] for token_id in range(vocab_size)]
        # [vocabulary]: tokens that end a string, and those that end a number.
        self.ends_string = torch.tensor([byte == b'"' for byte in first])
        self.ends_number = torch.tensor([byte != b"" and byte in _AFTER_NUMBERS for byte in first])
        self.ends_number[tokenizer.im_end_id] = True

    def of(self, schema: str) -> JsonGrammar:
        """A grammar at the start of a text. Raises what ``superlink.json_schemas.matcher_of`` raises."""
        return JsonGrammar(matcher_of(schema, self._tokenizer), self)


class JsonGrammar:
    """Follows one text. It ends with ``<|im_end|>``, or by itself when nothing can follow."""

    def __init__(self, matcher: LLMatcher, grammars: JsonGrammars) -> None:
        self._matcher = matcher
        self._grammars = grammars
        self._in_string = False
        self._escaped = False
        self._last = 0
        self._allowed = self._next_allowed()
        # Why the text cannot go on; some schemas turn out to be too complex only on the way.
        self.failure: SuperlinkError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the text fits the schema and nothing can follow."""
        return self._matcher.is_stopped() and self.failure is None

    def constrain(self, logits: Tensor) -> Tensor:
        """Logits ``[vocabulary]`` with minus infinity on every token that may not come next.

        A model that never learned JSON does not end a number with a brace or a string with a quote; it writes what
        comes after, as a space, a full stop, the end of the answer. So within a string or a number the probability of
        all that may not come goes to the tokens that end it. Without this, profile tiny counts 30 dogs for 3.
        """
        allowed = self._allowed.to(logits.device)
        held = torch.where(allowed, logits, float("-inf"))
        ending = self._ending()
        if ending is not None:
            ending = ending.to(logits.device) & allowed
            if ending.any():
                others = torch.where(allowed, float("-inf"), logits).logsumexp(dim=-1)
                now = held[ending].logsumexp(dim=-1)
                held[ending] += torch.logaddexp(now, others) - now
        return held

    def accept(self, token_id: int) -> None:
        """Let ``token_id``, one that may come next, become part of the text."""
        self._matcher.consume_token(token_id)
        for byte in self._grammars.token_bytes(token_id):
            self._read(byte)
        self._allowed = self._next_allowed()
        if self._matcher.is_error():
            self.failure = too_hard(self._matcher)

    def _read(self, byte: int) -> None:
        if byte == _QUOTE and not self._escaped:
            self._in_string = not self._in_string
        self._escaped = byte == _BACKSLASH and not self._escaped
        self._last = byte

    def _ending(self) -> Tensor | None:
        """``[vocabulary]``: tokens that end the string or number that the text stands in."""
        if self._in_string:
            return self._grammars.ends_string
        return self._grammars.ends_number if self._last in _DIGITS else None

    def _next_allowed(self) -> Tensor:
        """``[vocabulary]`` on the CPU: tokens that may come next."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        # Of logits beyond the tokenizer's vocabulary: zeros.
        bits = np.unpackbits(packed, count=self._grammars.vocab_size, bitorder="little")
        return torch.from_numpy(bits).bool()


class _Vocabulary:
    """The tokenizer as llguidance asks for one."""

    def __init__(self, tokenizer: MllmTokenizer) -> None:
        self._encode = tokenizer.encode_text
        self.eos_token_id = tokenizer.im_end_id
        self.bos_token_id = None
        self.special_token_ids = sorted(tokenizer.special_ids)
        # Special tokens by their names, since no two may look the same.
        self.tokens = [
            tokenizer.name(token_id).encode() if token_id in tokenizer.special_ids else tokenizer.token_bytes(token_id)
            for token_id in range(len(tokenizer))
        ]

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode())
