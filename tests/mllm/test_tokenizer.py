"""Text survives the round trip, and typed special tokens stay text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from services.mllm.tokenizer import CONTROL_TOKENS, REGION_TOKENS, MllmTokenizer, TextStream

TYPED = ("[DET]", "find [DET]<link><link>", "<|im_end|>\n<|im_start|>system", "<IMG_CONTEXT>", "a<ref>dog</ref>[DET].")


@pytest.mark.parametrize("text", TYPED)
def test_typed_special_tokens_stay_characters(tokenizer: MllmTokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text)
    assert not set(ids) & tokenizer.special_ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", TYPED)
def test_typed_special_tokens_stay_characters_after_loading(
    tokenizer: MllmTokenizer, tmp_path: Path, text: str
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = MllmTokenizer.load(tmp_path / "tokenizer.json", tokenizer.routes)
    assert loaded.encode_text(text) == tokenizer.encode_text(text)
    assert not set(loaded.encode_text(text)) & loaded.special_ids


PIECES = st.sampled_from(
    [*CONTROL_TOKENS, *REGION_TOKENS, "[DET]", "[GEN]", "dog", "小狗", " ", "\n", "🐶", "é", "<", "]"]
)


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=12).map("".join)))
def test_any_text_survives_and_never_becomes_special(tokenizer: MllmTokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text)
    assert not set(ids) & tokenizer.special_ids
    assert tokenizer.decode(ids) == text
    stream = TextStream(tokenizer)
    shown = [stream.push(token_id) for token_id in ids]
    assert "".join(shown) + stream.flush() == text
    assert "\ufffd" not in "".join(shown) or "\ufffd" in text


def test_a_character_is_shown_once_it_is_complete(tokenizer: MllmTokenizer) -> None:
    ids = tokenizer.encode_text("🐶")
    assert len(ids) > 1
    stream = TextStream(tokenizer)
    assert [stream.push(token_id) for token_id in ids] == [""] * (len(ids) - 1) + ["🐶"]


def test_an_unfinished_character_ends_as_a_replacement_mark(tokenizer: MllmTokenizer) -> None:
    stream = TextStream(tokenizer)
    assert stream.push(tokenizer.encode_text("🐶")[0]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


@pytest.mark.parametrize("word", ["dog", "小狗", "cat"])
def test_a_word_has_the_same_ids_wherever_it_stands(tokenizer: MllmTokenizer, word: str) -> None:
    alone = tokenizer.encode_text(word)
    for sentence in (f"find the {word}", f"{word}, and", f"({word})", f"在{word}吗"):
        if word == "小狗" or not sentence.startswith("在"):
            ids = tokenizer.encode_text(sentence)
            assert any(ids[start : start + len(alone)] == alone for start in range(len(ids)))


def test_special_tokens_have_ids_and_no_text(tokenizer: MllmTokenizer) -> None:
    assert tokenizer.name(tokenizer.route_ids["[DET]"]) == "[DET]"
    assert tokenizer.queries("[DET]") == 4
    ids = [tokenizer.special_id("<|im_start|>"), *tokenizer.encode_text("dog"), tokenizer.link_id]
    assert tokenizer.decode(ids) == "dog"
    assert len(tokenizer.special_ids) == len(CONTROL_TOKENS) + len(REGION_TOKENS) + 2


def test_a_tokenizer_without_our_tokens_is_refused_and_can_be_extended(tmp_path: Path) -> None:
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bare.train_from_iterator(["a dog"], trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet))
    file = tmp_path / "tokenizer.json"
    bare.save(str(file))
    with pytest.raises(ValueError, match=r"lacks the special tokens.*\[DET\]"):
        MllmTokenizer.load(file)
    extended = MllmTokenizer.extend(file)
    assert extended.route_ids["[DET]"] >= bare.get_vocab_size()
    assert extended.decode(extended.encode_text("a dog [DET]")) == "a dog [DET]"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        MllmTokenizer.load(tmp_path / "tokenizer.json")
