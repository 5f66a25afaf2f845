"""Byte-level BPE of the MLLM: ordinary text and special tokens never mix.

What a person types is encoded by ``encode_text``, which knows no special token: a typed "[DET]" stays five
characters. Special tokens enter a sequence only by their ids. Public checkpoints may bring SentencePiece's BPE with
byte fallback instead.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from services.mllm.prompt_format import PromptFormat

PAD = "<pad>"
OBSERVE = "<|observe|>"
IMAGE_START = "<img>"
IMAGE_END = "</img>"
IMAGE_CONTEXT = "<IMG_CONTEXT>"
PHRASE_START = "<ref>"
PHRASE_END = "</ref>"
LINK = "<link>"
REGION_START = "<reg>"
REGION_END = "</reg>"
REGION = "<region>"

# Beside those of the prompt format.
_FRAMING_TOKENS = (
    OBSERVE,
    IMAGE_START,
    IMAGE_END,
    IMAGE_CONTEXT,
    PHRASE_START,
    PHRASE_END,
    LINK,
)

# Of public models, around the boxes that they write.
BOX_TOKENS = ("<box>", "</box>")

_MARKUP = re.compile(f"({'|'.join(map(re.escape, (PHRASE_START, PHRASE_END, *BOX_TOKENS)))})")

# Of models that take visual prompts.
REGION_TOKENS = (REGION_START, REGION_END, REGION)

DEFAULT_ROUTES: Mapping[str, int] = {
    "[DET]": 4,
    "[SEG]": 4,
    "[POSE_OBJECT]": 4,
    "[POSE]": 4,
    "[GEN]": 8,
    "[EDIT]": 8,
}

# SentencePiece's space, and its pieces that are one byte.
_SPACE = "▁"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")

# Spaces, digits and Han characters stand alone, so that a word has the same ids wherever it occurs ("dog" in a
# question, after "<ref>", before a comma): a small model then copies a phrase token by token.
_WORDS = r"\p{Han}|[\p{L}\p{M}&&[^\p{Han}]]+|\p{N}|\n|[^\S\n]+|[^\s\p{L}\p{M}\p{N}]"

_OWN_PROMPT = PromptFormat()


def _control_tokens(prompt: PromptFormat) -> tuple[str, ...]:
    shape = prompt.shape
    start = () if prompt.bos_token is None else (prompt.bos_token,)
    return (PAD, *shape.header_tokens, shape.turn_end, *_FRAMING_TOKENS, *start)


# Of Superlink's own models, in the order in which their vocabularies begin.
CONTROL_TOKENS = _control_tokens(_OWN_PROMPT)


class MllmTokenizer:
    """Text and ids of one MLLM.

    ``routes`` maps each routing token to the number of super-link queries behind it: ``{"[DET]": 4}``; ``prompt`` says
    how conversations are laid out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        routes: Mapping[str, int] = DEFAULT_ROUTES,
        prompt: PromptFormat = _OWN_PROMPT,
    ) -> None:
        """Wrap ``tokenizer``. Raises ValueError when it lacks a special token."""
        self._tokenizer = tokenizer
        self.prompt = prompt
        self.routes: dict[str, int] = dict(routes)
        wanted = (*_control_tokens(prompt), *self.routes)
        missing = [token for token in wanted if tokenizer.token_to_id(token) is None]
        if missing:
            raise ValueError(f"The tokenizer lacks the special tokens {', '.join(missing)}.")
        self._is_sentencepiece = bool(getattr(tokenizer.model, "byte_fallback", False))
        # Whether a space is put before every text, as SentencePiece may do, so that first words are like others.
        self.puts_space_first = False
        # What encodes: without that space, which only texts that begin anew get.
        self._encoder = tokenizer
        if self._is_sentencepiece:
            self._encoder, self.puts_space_first = _without_first_space(tokenizer)
        # Special tokens typed into a text are split like any other text.
        self._encoder.encode_special_tokens = True
        self._wanted_ids = {token: self._id(token) for token in wanted}
        self.pad_id = self._id(PAD)
        self.bos_id: int | None = None if prompt.bos_token is None else self._id(prompt.bos_token)
        # What closes a turn: <|im_end|>, or <|end|> of Phi-3.
        self.im_end_id = self._id(prompt.shape.turn_end)
        self.observe_id = self._id(OBSERVE)
        self.image_start_id = self._id(IMAGE_START)
        self.image_end_id = self._id(IMAGE_END)
        self.image_context_id = self._id(IMAGE_CONTEXT)
        self.phrase_start_id = self._id(PHRASE_START)
        self.phrase_end_id = self._id(PHRASE_END)
        self.link_id = self._id(LINK)
        # None where the model takes no regions.
        self.region_id: int | None = tokenizer.token_to_id(REGION)
        self.route_ids: dict[str, int] = {route: self._id(route) for route in self.routes}
        self.route_of_id: dict[int, str] = {token_id: route for route, token_id in self.route_ids.items()}
        added = tokenizer.get_added_tokens_decoder()
        shown = BOX_TOKENS if prompt.grounds_in_text else ()
        # Around phrases and boxes in the texts of models that ground in text; missing ones are plain text.
        self._markup_ids: dict[str, int] = {
            token: token_id
            for token in (PHRASE_START, PHRASE_END, *BOX_TOKENS)
            if prompt.grounds_in_text and (token_id := tokenizer.token_to_id(token)) is not None
        }
        self.special_ids: frozenset[int] = frozenset(
            {token_id for token_id, token in added.items() if token.special and token.content not in shown}
            | set(self._wanted_ids.values())
        )
        # Special tokens that swallow the white space after them, as those of Phi-3 do.
        self._greedy_ids = frozenset(token_id for token_id, token in added.items() if token.rstrip)
        self._bytes_of_id = self._token_bytes()

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        routes: Mapping[str, int] = DEFAULT_ROUTES,
        prompt: PromptFormat = _OWN_PROMPT,
    ) -> MllmTokenizer:
        """Learn a vocabulary of at most ``vocab_size`` tokens, the 256 bytes and the special ones included."""
        # Models that ground in text write boxes; the others take visual prompts.
        places = BOX_TOKENS if prompt.grounds_in_text else REGION_TOKENS
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=_added_tokens((*_control_tokens(prompt), *places, *routes)),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer, routes, prompt)

    @classmethod
    def load(
        cls, file: Path, routes: Mapping[str, int] = DEFAULT_ROUTES, prompt: PromptFormat = _OWN_PROMPT
    ) -> MllmTokenizer:
        """Read a ``tokenizer.json``. Raises FileNotFoundError, or ValueError when special tokens are missing."""
        if not file.is_file():
            raise FileNotFoundError(f"No tokenizer at {file}.")
        return cls(Tokenizer.from_file(str(file)), routes, prompt)

    @classmethod
    def extend(
        cls,
        file: Path,
        routes: Mapping[str, int] = DEFAULT_ROUTES,
        prompt: PromptFormat = _OWN_PROMPT,
        takes_regions: bool = False,
    ) -> MllmTokenizer:
        """Read a ``tokenizer.json`` and append the special tokens that it lacks.

        ``takes_regions``: also those of visual prompts.
        """
        return cls.complete(Tokenizer.from_file(str(file)), routes, prompt, takes_regions)

    @classmethod
    def complete(
        cls,
        tokenizer: Tokenizer,
        routes: Mapping[str, int],
        prompt: PromptFormat = _OWN_PROMPT,
        takes_regions: bool = False,
    ) -> MllmTokenizer:
        """Append to ``tokenizer`` the special tokens that it lacks."""
        wanted = (*_control_tokens(prompt), *(REGION_TOKENS if takes_regions else ()), *routes)
        lacking = [token for token in wanted if tokenizer.token_to_id(token) is None]
        tokenizer.add_special_tokens(_added_tokens(lacking))
        return cls(tokenizer, routes, prompt)

    def save(self, file: Path) -> None:
        """Write ``tokenizer.json``."""
        self._tokenizer.save(str(file))

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode_text(self, text: str, after: int | None = None) -> list[int]:
        """Ids of ``text`` behind the token ``after``; none of them is a special token, whatever the text says."""
        if after in self._greedy_ids:
            text = text.lstrip()
        if self.puts_space_first and text and (after is None or after in self.special_ids or self._is_markup(after)):
            text = f" {text}"
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def encode_grounded(self, text: str, after: int | None = None) -> list[int]:
        """As ``encode_text``, but with the marks of phrases and boxes by their own ids, of models that know such."""
        ids: list[int] = []
        for part in _MARKUP.split(text) if self._markup_ids else (text,):
            mark = self._markup_ids.get(part)
            if mark is not None:
                ids.append(mark)
            elif part:
                ids += self.encode_text(part, ids[-1] if ids else after)
        return ids

    def special_id(self, token: str) -> int:
        """The id of a special token. Raises KeyError for an unknown one."""
        return self._wanted_ids[token] if token in self._wanted_ids else self._id(token)

    def encode_region(self, number: int) -> list[int]:
        """Ids of visual prompt ``number``: ``<reg>region 1<region></reg>``. Raises KeyError where none are taken."""
        start, end = self._id(REGION_START), self._id(REGION_END)
        return [start, *self.encode_text(f"region {number}"), self._id(REGION), end]

    def queries(self, route: str) -> int:
        """Super-link queries behind the routing token ``route``. Raises KeyError for an unknown one."""
        return self.routes[route]

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for; empty for special tokens."""
        return self._bytes_of_id[token_id] if token_id < len(self._bytes_of_id) else b""

    def decode(self, ids: Sequence[int]) -> str:
        """The visible text of ``ids``: special tokens vanish, broken UTF-8 becomes U+FFFD."""
        return b"".join(self.token_bytes(token_id) for token_id in ids).decode("utf-8", errors="replace")

    def name(self, token_id: int) -> str:
        """The token as the vocabulary spells it; for tests and logs."""
        return self._tokenizer.id_to_token(token_id) or ""

    def _is_markup(self, token_id: int) -> bool:
        return token_id in self._markup_ids.values()

    def _id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise KeyError(token)
        return int(token_id)

    def _token_bytes(self) -> list[bytes]:
        byte_of_character = _byte_of_character()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        table = [b""] * (max(vocabulary.values()) + 1)
        for token, token_id in vocabulary.items():
            if token_id in self.special_ids:
                continue
            if self._is_sentencepiece:
                byte = _BYTE_PIECE.fullmatch(token)
                table[token_id] = bytes.fromhex(byte[1]) if byte else token.replace(_SPACE, " ").encode("utf-8")
            elif all(character in byte_of_character for character in token):
                table[token_id] = bytes(byte_of_character[character] for character in token)
            else:
                # An added token that is not special is spelt as plain text.
                table[token_id] = token.encode("utf-8")
        return table


class TextStream:
    """Turns ids into text one at a time and never emits half a character."""

    def __init__(self, tokenizer: MllmTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drops_space = tokenizer.puts_space_first

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes; empty while a multi-byte character is open."""
        text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
        if self._drops_space and text:
            self._drops_space = False
            text = text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """What is left at the end of a text: U+FFFD for an unfinished character, else nothing."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._drops_space = self._tokenizer.puts_space_first
        return rest


def _without_first_space(tokenizer: Tokenizer) -> tuple[Tokenizer, bool]:
    """A copy that puts no space before a text, and whether ``tokenizer`` does."""
    state = json.loads(tokenizer.to_str())
    normalizer = state["normalizer"] or {}
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    kept = [step for step in steps if step and step["type"] != "Prepend"]
    puts_space = len(kept) < len([step for step in steps if step])
    state["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    splitter = state["pre_tokenizer"]
    if splitter is not None and splitter["type"] == "Metaspace":
        puts_space = puts_space or splitter["prepend_scheme"] != "never"
        splitter["prepend_scheme"] = "never"
    return Tokenizer.from_str(json.dumps(state)), puts_space


def _added_tokens(tokens: Iterable[str]) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _byte_of_character() -> dict[str, int]:
    """The inverse of byte-level BPE's spelling: printable Latin-1 bytes are themselves, the rest follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(0x100 + position): byte for position, byte in enumerate(hidden)})
    return table
