"""Texts as ids for the decoder: a tokenizer from a file, and three marks for images behind its last id."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from services.trainer.latent_compression.sequences import Marks, Text
from superlink.configuration import ConfigurationError

# What known tokenizers call start and end of a text; CLIP's come first.
_FRAMES = (("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>"), ("<s>", "</s>"))


class DocumentTokenizer:
    """Encodes ordinary text: a mark that somebody typed is split like any other word."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap ``tokenizer``. Raises ConfigurationError where it has no tokens for start and end."""
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True
        words: int = tokenizer.get_vocab_size()
        frames = ([tokenizer.token_to_id(token) for token in pair] for pair in _FRAMES)
        start, end = next((ids for ids in frames if None not in ids), (None, None))
        if start is None or end is None:
            known = ", ".join(" ".join(pair) for pair in _FRAMES)
            raise ConfigurationError(f"The tokenizer has no tokens for start and end of a text; known are: {known}.")
        # In the order of the released model: with CLIP's words 49408, 49409 and 49410.
        self.marks = Marks(start, end, image=words, start_of_image=words + 1, end_of_image=words + 2)
        self.vocabulary = words + 3

    @classmethod
    def load(cls, file: Path) -> DocumentTokenizer:
        """Read a tokenizer.json. Raises ConfigurationError."""
        if not file.is_file():
            raise ConfigurationError(f"latent_compression.tokenizer: there is no file {file}.")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        # The library raises nothing more special.
        except Exception as error:
            raise ConfigurationError(f"latent_compression.tokenizer: {file} is no tokenizer.json ({error}).") from error
        return cls(tokenizer)

    def encode(self, text: str) -> Text:
        """A text without start and end."""
        return Text(tuple(self._tokenizer.encode(text, add_special_tokens=False).ids))
