"""Tokens become visible text, phrases, spans and stops."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.mllm.answer import AnswerWriter
from services.mllm.sampling import WritingState
from services.mllm.tokenizer import MllmTokenizer


def phrase_ids(tokenizer: MllmTokenizer, phrase: str, route: str = "[DET]") -> list[int]:
    words = tokenizer.encode_text(phrase)
    return [tokenizer.phrase_start_id, *words, tokenizer.phrase_end_id, tokenizer.route_ids[route]]


def written(writer: AnswerWriter, ids: list[int]) -> str:
    return "".join(writer.push(token_id) for token_id in ids)


def test_a_span_counts_code_points_of_the_visible_text(tokenizer: MllmTokenizer) -> None:
    writer = AnswerWriter(tokenizer)
    text = written(writer, tokenizer.encode_text("🐶在这里：") + phrase_ids(tokenizer, "小狗"))
    assert text == "🐶在这里：小狗"
    assert text[writer.phrase.start : writer.phrase.end] == writer.phrase.text == "小狗"
    text += written(writer, tokenizer.encode_text(" and ") + phrase_ids(tokenizer, " the cat "))
    assert text[writer.phrase.start : writer.phrase.end] == writer.phrase.text == "the cat"


def test_special_tokens_follow_only_where_they_make_sense(tokenizer: MllmTokenizer) -> None:
    writer = AnswerWriter(tokenizer)
    assert writer.state is WritingState.TEXT
    writer.push(tokenizer.phrase_start_id)
    assert writer.state is WritingState.PHRASE_OPEN
    written(writer, tokenizer.encode_text(" "))
    assert writer.state is WritingState.PHRASE_OPEN
    written(writer, tokenizer.encode_text("dog"))
    assert writer.state is WritingState.PHRASE
    writer.push(tokenizer.phrase_end_id)
    assert writer.state is WritingState.PHRASE_CLOSED
    writer.push(tokenizer.route_ids["[DET]"])
    assert writer.state is WritingState.TEXT_ROUTED


def test_text_behind_a_phrase_ends_the_chance_to_route_it(tokenizer: MllmTokenizer) -> None:
    writer = AnswerWriter(tokenizer)
    written(writer, phrase_ids(tokenizer, "dog")[:-1] + tokenizer.encode_text(","))
    assert writer.state is WritingState.TEXT


def test_an_answer_stops_before_the_stop_string(tokenizer: MllmTokenizer) -> None:
    writer = AnswerWriter(tokenizer, stop=["the cat"])
    text = written(writer, tokenizer.encode_text("Here is the dog, and the cat."))
    assert text == "Here is the dog, and "
    assert writer.stopped
    assert writer.finish() == ""


def test_what_only_looked_like_a_stop_string_is_shown_in_the_end(tokenizer: MllmTokenizer) -> None:
    writer = AnswerWriter(tokenizer, stop=["dog house"])
    ids = tokenizer.encode_text("the dog")
    assert written(writer, ids) == "the "
    assert writer.finish() == "dog"


def test_a_groups_words_are_shown_before_the_group(tokenizer: MllmTokenizer) -> None:
    writer = AnswerWriter(tokenizer, stop=["dog house"])
    assert written(writer, phrase_ids(tokenizer, "dog")) == "dog"


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab🐶小 ", max_size=30), stop=st.lists(st.text(alphabet="ab小", min_size=1, max_size=3)))
def test_any_text_is_cut_exactly_at_the_first_stop_string(tokenizer: MllmTokenizer, text: str, stop: list[str]) -> None:
    writer = AnswerWriter(tokenizer, stop)
    shown = ""
    for token_id in tokenizer.encode_text(text):
        shown += writer.push(token_id)
        if writer.stopped:
            break
    shown += writer.finish()
    ends = [place for place in (text.find(word) for word in stop) if place >= 0]
    assert text.startswith(shown)
    if not ends:
        assert shown == text
    else:
        assert writer.stopped
        assert not any(word in shown for word in stop)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_broken_character_never_leaks_past_a_special_token(tokenizer: MllmTokenizer, cut: int) -> None:
    writer = AnswerWriter(tokenizer)
    ids = tokenizer.encode_text("🐶")[:cut] + phrase_ids(tokenizer, "dog")
    text = written(writer, ids)
    assert text[writer.phrase.start : writer.phrase.end] == "dog"
