"""Seeds, temperatures, tools that must not be called, and log-probabilities, on small untrained models."""

from __future__ import annotations

import math

import pytest
import torch

from services.mllm.batch import AnswerEvent, FinishEvent, FinishReason, GroupEvent, Prompt, RunningBatch, TextEvent
from services.mllm.conversation import Text, Turn, render
from services.mllm.model import Mllm
from services.mllm.sampling import Sampling
from services.mllm.token_choices import TokenChoice, choice_of
from services.mllm.tokenizer import MllmTokenizer


def write(
    model: Mllm, tokenizer: MllmTokenizer, sampling: Sampling, bias: dict[int, float] | None = None
) -> list[AnswerEvent]:
    """One answer; ``bias`` is added to the model's logits, so that it comes to what a test is about."""
    batch = RunningBatch(model, tokenizer, 1)
    for token_id, value in (bias or {}).items():
        batch._allowed._bias[:, token_id] += value
    rendered = render([Turn("user", (Text("Find the dog."),))], tokenizer, [], for_generation=True)
    with torch.inference_mode():
        [(_, events)] = batch.join([Prompt(rendered, None, sampling)])
        while batch.rows:
            events += [event for _, more in batch.step() for event in more]
    return events


def text_of(events: list[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextEvent))


def choices_of(events: list[AnswerEvent]) -> list[TokenChoice]:
    return [choice for event in events if isinstance(event, TextEvent) for choice in event.tokens]


def routing(tokenizer: MllmTokenizer) -> dict[int, float]:
    """Phrases all the time, routed as soon as they have words, and never an end."""
    return {
        tokenizer.phrase_start_id: 30.0,
        tokenizer.phrase_end_id: 30.0,
        **dict.fromkeys(tokenizer.route_of_id, 60.0),
        tokenizer.im_end_id: -math.inf,
        tokenizer.observe_id: -math.inf,
    }


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_a_seed_makes_an_answer_again(model: Mllm, tokenizer: MllmTokenizer, seed: int) -> None:
    sampling = Sampling(temperature=3.0, seed=seed, max_new_tokens=30)
    assert write(model, tokenizer, sampling) == write(model, tokenizer, sampling)


def test_without_a_seed_answers_differ(model: Mllm, tokenizer: MllmTokenizer) -> None:
    answers = {text_of(write(model, tokenizer, Sampling(temperature=3.0, max_new_tokens=30))) for _ in range(4)}
    assert len(answers) > 1


def test_without_temperature_the_seed_does_not_matter(model: Mllm, tokenizer: MllmTokenizer) -> None:
    answers = {text_of(write(model, tokenizer, Sampling(seed=seed, max_new_tokens=30))) for seed in range(3)}
    assert len(answers) == 1


def test_the_smallest_top_p_is_the_likeliest_token(model: Mllm, tokenizer: MllmTokenizer) -> None:
    greedy = write(model, tokenizer, Sampling(max_new_tokens=30))
    assert write(model, tokenizer, Sampling(temperature=3.0, top_p=1e-6, seed=1, max_new_tokens=30)) == greedy


def test_nothing_is_reported_unasked(model: Mllm, tokenizer: MllmTokenizer) -> None:
    assert not choices_of(write(model, tokenizer, Sampling(max_new_tokens=10)))


@pytest.mark.parametrize("temperature", [0.0, 4.0])
def test_the_reported_tokens_are_the_text(model: Mllm, tokenizer: MllmTokenizer, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=2, max_new_tokens=40, top_log_probabilities=3)

    events = write(model, tokenizer, sampling)

    choices = choices_of(events)
    assert b"".join(choice.encoded for choice in choices).decode(errors="replace") == text_of(events)
    for choice in choices:
        assert choice.log_probability <= 0
        likeliest = [other.log_probability for other in choice.alternatives]
        assert likeliest == sorted(likeliest, reverse=True)
        assert len(likeliest) == 3
        assert max(likeliest) >= choice.log_probability
        if temperature == 0:
            assert choice.alternatives[0].token == choice.token


def test_a_routing_token_is_reported_with_those_in_its_place(model: Mllm, tokenizer: MllmTokenizer) -> None:
    sampling = Sampling(max_new_tokens=8, top_log_probabilities=2)

    events = write(model, tokenizer, sampling, routing(tokenizer))

    groups = [event for event in events if isinstance(event, GroupEvent)]
    routed = [choice for choice in choices_of(events) if not choice.encoded]
    assert groups
    assert [choice.token for choice in routed] == [group.route for group in groups]
    assert [choice.log_probability for choice in routed] == pytest.approx([group.log_probability for group in groups])
    assert {other.token for other in routed[0].alternatives} == {"[DET]", "[GEN]"}
    # Its words stand before it.
    kinds = [type(event) for event in events]
    first_group = kinds.index(GroupEvent)
    assert any(choice in routed for choice in choices_of(events[:first_group]))


def test_only_the_given_tools_are_called(model: Mllm, tokenizer: MllmTokenizer) -> None:
    def called(routes: frozenset[str] | None) -> set[str]:
        events = write(model, tokenizer, Sampling(5.0, 1.0, 1, 90, (), routes), routing(tokenizer))
        return {event.route for event in events if isinstance(event, GroupEvent)}

    assert called(None) == {"[DET]", "[GEN]"}
    assert called(frozenset({"[GEN]"})) == {"[GEN]"}
    assert called(frozenset()) == set()


def test_tokens_that_a_stop_text_cuts_off_are_not_reported(model: Mllm, tokenizer: MllmTokenizer) -> None:
    plain = write(model, tokenizer, Sampling(max_new_tokens=30, top_log_probabilities=0))
    whole = text_of(plain)
    stop = whole[6:9]
    cut = whole.find(stop)

    events = write(model, tokenizer, Sampling(max_new_tokens=30, stop=(stop,), top_log_probabilities=0))

    finish = events[-1]
    assert isinstance(finish, FinishEvent)
    assert finish.reason is FinishReason.STOP
    assert text_of(events) == whole[:cut]
    reported = b"".join(choice.encoded for choice in choices_of(events))
    assert reported.startswith(whole[:cut].encode())
    # A token that the cut goes through is reported whole, none behind it is.
    last = choices_of(events)[-1].encoded if cut else b""
    assert len(reported) - len(last) < len(whole[:cut].encode()) or not cut


def test_what_could_not_come_is_no_alternative(tokenizer: MllmTokenizer) -> None:
    [dog], [cat] = tokenizer.encode_text("dog"), tokenizer.encode_text("cat")
    logits = torch.full((len(tokenizer),), -math.inf)
    logits[dog], logits[cat] = 1.0, 0.0

    choice = choice_of(logits, cat, 20, tokenizer)

    assert [other.token for other in choice.alternatives] == ["dog", "cat"]
    total = sum(math.exp(other.log_probability) for other in choice.alternatives)
    assert total == pytest.approx(1)


def test_part_of_a_character_is_reported_with_its_bytes(tokenizer: MllmTokenizer) -> None:
    first = tokenizer.encode_text("🐶")[0]
    logits = torch.zeros(len(tokenizer))

    choice = choice_of(logits, first, 0, tokenizer)

    assert "🐶".encode().startswith(choice.encoded)
    assert choice.token == "\ufffd"  # noqa: S105
