"""An answer as it is written: sampled tokens become visible text, phrases and spans. Pure logic, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.mllm.sampling import WritingState
from services.mllm.tokenizer import PHRASE_END, PHRASE_START, MllmTokenizer, TextStream


@dataclass(frozen=True)
class Phrase:
    """The words between <ref> and </ref>, and where they stand: half-open code points of the visible text."""

    text: str
    start: int
    end: int


class AnswerWriter:
    """Follows one answer token by token.

    Text that might be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, tokenizer: MllmTokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer)
        self._stop = [text for text in stop if text]
        self._held = ""
        self._length = 0
        self._phrase_start = 0
        self._phrase_text = ""
        self._routed = False
        self._where = "text"
        # The last closed phrase; what a routing token refers to.
        self.phrase = Phrase("", 0, 0)
        # A stop string appeared: the answer is over.
        self.stopped = False

    @property
    def length(self) -> int:
        """Code points written so far, those held back included."""
        return self._length

    @property
    def state(self) -> WritingState:
        """Where the answer stands."""
        if self._where == "phrase":
            return WritingState.PHRASE if self._phrase_text.strip() else WritingState.PHRASE_OPEN
        if self._where == "closed":
            return WritingState.PHRASE_CLOSED_ROUTED if self._routed else WritingState.PHRASE_CLOSED
        return WritingState.TEXT_ROUTED if self._routed else WritingState.TEXT

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that may be shown now."""
        tokenizer = self._tokenizer
        if token_id not in tokenizer.special_ids:
            if self._where == "closed":
                self._where = "text"
            return self._write(self._stream.push(token_id))
        shown = self._write(self._stream.flush())
        if token_id == tokenizer.phrase_start_id:
            shown += self._markup(PHRASE_START)
            self._where = "phrase"
            self._phrase_start, self._phrase_text = self._length, ""
        elif token_id == tokenizer.phrase_end_id:
            self._where = "closed"
            self.phrase = self._close_phrase()
            shown += self._markup(PHRASE_END)
        elif token_id in tokenizer.route_of_id:
            self._where = "text"
            self._routed = True
            # A group's words are shown before the group is reported.
            shown += self._release()
        return shown

    def finish(self) -> str:
        """The rest of the text once nothing more comes."""
        shown = self._write(self._stream.flush())
        return shown if self.stopped else shown + self._release()

    def _markup(self, token: str) -> str:
        """The marks of a phrase, where answers show them."""
        return self._write(token) if self._tokenizer.prompt.grounds_in_text else ""

    def _close_phrase(self) -> Phrase:
        text = self._phrase_text.strip()
        start = self._phrase_start + len(self._phrase_text) - len(self._phrase_text.lstrip())
        return Phrase(text, start, start + len(text))

    def _write(self, text: str) -> str:
        if not text or self.stopped:
            return ""
        self._length += len(text)
        if self._where == "phrase":
            self._phrase_text += text
        if not self._stop:
            return text
        self._held += text
        found = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max(_overlap(self._held, stop) for stop in self._stop)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def _release(self) -> str:
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
