"""Structured answers: whatever a model would rather write, its text is JSON by the schema."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from small_mllm import build_model

from services.mllm.batch import FinishEvent, FinishReason, GroupEvent, Prompt, RunningBatch, TextEvent
from services.mllm.conversation import Text, Turn, render
from services.mllm.json_grammar import JsonGrammar, JsonGrammars
from services.mllm.model import Mllm
from services.mllm.sampling import Sampling
from services.mllm.tokenizer import MllmTokenizer
from superlink.errors import SuperlinkError

PADDING = 13


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")

    x: int = Field(ge=-5, le=1000)
    share: float = Field(ge=0, le=1)


class Scene(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["dog", "cat", "小狗"]
    is_seen: bool
    words: str = Field(max_length=6)
    places: list[Place] = Field(min_length=1, max_length=2)
    note: str | None = Field(max_length=3)


@pytest.fixture(scope="module")
def grammars(tokenizer: MllmTokenizer, model: Mllm) -> JsonGrammars:
    return JsonGrammars(tokenizer, model.config.vocab_size)


def write(
    model: Mllm, tokenizer: MllmTokenizer, grammars: list[JsonGrammar | None], sampling: Sampling
) -> list[tuple[str, FinishEvent]]:
    """What the model writes in rows that run together, one a grammar; nothing is routed in those that have one."""
    rendered = render([Turn("user", (Text("How many dogs?"),))], tokenizer, [], for_generation=True)
    batch = RunningBatch(model, tokenizer, len(grammars))
    with torch.inference_mode():
        results = batch.join([Prompt(rendered, None, sampling, None, grammar) for grammar in grammars])
        events = {row: list(first) for row, first in results}
        while batch.rows:
            for row, more in batch.step():
                events[row] += more
    written = []
    for grammar, (row, _) in zip(grammars, results, strict=True):
        *parts, last = events[row]
        assert isinstance(last, FinishEvent)
        assert grammar is None or not any(isinstance(part, GroupEvent) for part in parts)
        written.append(("".join(part.text for part in parts if isinstance(part, TextEvent)), last))
    return written


@pytest.mark.parametrize("seed", range(4))
def test_untrained_models_write_json_by_the_schema(
    model: Mllm, tokenizer: MllmTokenizer, grammars: JsonGrammars, seed: int
) -> None:
    schema = json.dumps(Scene.model_json_schema())
    for temperature in (0.0, 1.0, 8.0):
        sampling = Sampling(temperature=temperature, seed=seed, max_new_tokens=400)
        other = build_model(tokenizer, seed=seed)
        [(text, finish)] = write(other, tokenizer, [grammars.of(schema)], sampling)

        assert finish.reason is FinishReason.STOP
        Scene.model_validate_json(text, strict=True)


def test_rows_with_and_without_a_schema_run_together(
    model: Mllm, tokenizer: MllmTokenizer, grammars: JsonGrammars
) -> None:
    sampling = Sampling(temperature=2.0, seed=3, max_new_tokens=200)
    alone = [write(model, tokenizer, [grammar], sampling)[0] for grammar in (None, grammars.of(count_schema()))]

    together = write(model, tokenizer, [None, grammars.of(count_schema()), None], sampling)

    assert together == [alone[0], alone[1], alone[0]]
    assert 0 <= json.loads(together[1][0])["count"] <= 99


def test_json_that_is_cut_off_says_so(model: Mllm, tokenizer: MllmTokenizer, grammars: JsonGrammars) -> None:
    [(text, finish)] = write(model, tokenizer, [grammars.of(count_schema())], Sampling(max_new_tokens=4))

    assert finish == FinishEvent(FinishReason.LENGTH, 4)
    with pytest.raises(ValueError, match="line 1"):
        json.loads(text)


def test_padding_of_the_vocabulary_never_comes(tokenizer: MllmTokenizer) -> None:
    grammars = JsonGrammars(tokenizer, len(tokenizer) + PADDING)
    grammar = grammars.of('{"type": "integer"}')

    held = grammar.constrain(torch.zeros(len(tokenizer) + PADDING))

    assert held.isfinite().any()
    assert not held[len(tokenizer) :].isfinite().any()


def test_what_may_not_come_speaks_for_the_end_of_a_number(tokenizer: MllmTokenizer, grammars: JsonGrammars) -> None:
    """A model that would rather write a full stop than another digit has come to the number's end."""
    grammar = grammars.of(count_schema())
    for token in tokenizer.encode_text('{"count": 3'):
        grammar.accept(token)
    [zero], [brace], [stop] = (tokenizer.encode_text(text) for text in ("0", "}", "."))
    logits = torch.full((grammars.vocab_size,), -20.0)
    logits[zero], logits[brace], logits[stop] = 2.0, -10.0, 3.0

    assert int(grammar.constrain(logits).argmax()) == brace
    logits[stop] = 1.0
    assert int(grammar.constrain(logits).argmax()) == zero


def test_what_may_not_come_speaks_for_the_end_of_a_string(tokenizer: MllmTokenizer, grammars: JsonGrammars) -> None:
    grammar = grammars.of('{"type": "string"}')
    [quote], [full_stop] = tokenizer.encode_text('"'), tokenizer.encode_text(".")
    logits = torch.full((grammars.vocab_size,), -20.0)
    logits[full_stop], logits[tokenizer.im_end_id] = 1.0, 3.0

    grammar.accept(quote)
    for token in tokenizer.encode_text("dog"):
        grammar.accept(token)
    assert int(grammar.constrain(logits).argmax()) == quote

    # Behind a backslash a quote ends nothing.
    [backslash] = tokenizer.encode_text("\\")
    grammar.accept(backslash)
    grammar.accept(quote)
    assert int(grammar.constrain(logits).argmax()) == quote
    grammar.accept(quote)
    assert grammar.is_complete


def test_a_text_to_which_nothing_can_be_added_is_complete(tokenizer: MllmTokenizer, grammars: JsonGrammars) -> None:
    grammar = grammars.of('{"enum": [7, 71]}')
    [seven], [one] = tokenizer.encode_text("7"), tokenizer.encode_text("1")

    grammar.accept(seven)
    assert not grammar.is_complete
    assert grammar.constrain(torch.zeros(grammars.vocab_size))[tokenizer.im_end_id].isfinite()
    grammar.accept(one)
    assert grammar.is_complete


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"if": {}, "then": {}}}}, "if, then"),
        ({"type": "object", "x-guidance": {"lenient": True}, "properties": {"a": {"not": {}}}}, ": not"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "oneOf"),
        ({"type": "string", "format": "regex"}, "regex"),
        ({"type": "string", "pattern": "a(?!b)"}, "look-around"),
        ({"$ref": "https://example.org/schema"}, "example.org"),
        ({"type": "dog"}, "dog"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "nothing fits"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
        ({"enum": ["x" * 60_000]}, "50,000"),
    ],
)
def test_schemas_that_cannot_be_held_to_are_refused_with_the_keyword(
    grammars: JsonGrammars, schema: dict[str, Any], told: str
) -> None:
    with pytest.raises(SuperlinkError, match=told) as caught:
        grammars.of(json.dumps(schema))
    assert caught.value.code == "unsupported_schema"
    assert caught.value.http_status == 400


@pytest.mark.parametrize("schema", ["", "{", "[]", "true", "[" * 20_000])
def test_what_is_no_schema_is_refused(grammars: JsonGrammars, schema: str) -> None:
    with pytest.raises(SuperlinkError) as caught:
        grammars.of(schema)
    assert caught.value.code == "unsupported_schema"


def count_schema() -> str:
    properties = {"count": {"type": "integer", "minimum": 0, "maximum": 99}}
    return json.dumps(
        {"type": "object", "properties": properties, "required": ["count"], "additionalProperties": False}
    )
