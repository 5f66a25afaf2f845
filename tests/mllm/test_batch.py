"""The running batch: answers do not depend on company, links equal their teacher-forced twins."""

from __future__ import annotations

import pytest
import torch
from small_mllm import build_model

from services.mllm.batch import (
    AnswerEvent,
    FinishEvent,
    FinishReason,
    GroupEvent,
    Prompt,
    Row,
    RunningBatch,
    TextEvent,
    link_teacher_forced,
)
from services.mllm.conversation import ImagePart, RoutedPhrase, Text, Turn, render
from services.mllm.model import Mllm
from services.mllm.sampling import Sampling, pick
from services.mllm.tokenizer import MllmTokenizer

Answer = tuple[Text | RoutedPhrase, ...]

DOG: Answer = (Text("Here is the "), RoutedPhrase("[DET]", "dog"), Text("."))
BOTH: Answer = (RoutedPhrase("[DET]", "小狗"), Text("和"), RoutedPhrase("[GEN]", "cat"), Text(" and so on."))
MANY: Answer = tuple(RoutedPhrase("[DET]", word) for word in ("dog", "cat", "the leftmost dog", "猫"))
GENERATED: Answer = (Text("There are 3: "), RoutedPhrase("[GEN]", "a dog"), Text(", "), RoutedPhrase("[DET]", "dog"))


class ScriptedBatch(RunningBatch):
    """Writes given answers instead of sampled ones; everything else is the real thing."""

    def __init__(self, model: Mllm, tokenizer: MllmTokenizer, max_rows: int) -> None:
        super().__init__(model, tokenizer, max_rows)
        self.scripts: list[list[int]] = []
        self._script_of: dict[Row, list[int]] = {}

    def _row(self, prompt: Prompt) -> Row:
        row = super()._row(prompt)
        self._script_of[row] = self.scripts.pop(0)
        return row

    def _sample(self, rows: list[Row], states: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        _, logits = super()._sample(rows, states)
        return [self._script_of[row][row.completion_tokens] for row in rows], logits


def features(model: Mllm, seed: int) -> torch.Tensor:
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return model.encode_images(pixels)[0]


def prompt(
    model: Mllm, tokenizer: MllmTokenizer, question: str, seed: int = 0, sampling: Sampling | None = None
) -> Prompt:
    turns = [Turn("user", (ImagePart(0), Text(question)))]
    rendered = render(turns, tokenizer, [model.config.tokens_per_tile], for_generation=True)
    return Prompt(rendered, features(model, seed), sampling or Sampling(max_new_tokens=200))


def forced(model: Mllm, tokenizer: MllmTokenizer, question: str, answer: Answer, seed: int) -> Prompt:
    turns = [Turn("user", (ImagePart(0), Text(question))), Turn("assistant", answer)]
    rendered = render(turns, tokenizer, [model.config.tokens_per_tile], for_generation=False)
    return Prompt(rendered, features(model, seed))


def script(tokenizer: MllmTokenizer, answer: Answer) -> list[int]:
    """What the model has to write for ``answer``."""
    rendered = render([Turn("assistant", answer)], tokenizer, [], for_generation=False)
    return [label for label in rendered.labels if label >= 0]


class Log:
    """Events by row."""

    def __init__(self) -> None:
        self.events: dict[Row, list[AnswerEvent]] = {}

    def add(self, results: list[tuple[Row, list[AnswerEvent]]]) -> list[Row]:
        for row, events in results:
            self.events.setdefault(row, []).extend(events)
        return [row for row, _ in results]

    def groups(self, row: Row) -> list[GroupEvent]:
        return [event for event in self.events[row] if isinstance(event, GroupEvent)]

    def text(self, row: Row) -> str:
        return "".join(event.text for event in self.events[row] if isinstance(event, TextEvent))

    def finish(self, row: Row) -> FinishEvent:
        last = self.events[row][-1]
        assert isinstance(last, FinishEvent)
        return last


@torch.inference_mode()
def run(batch: RunningBatch, log: Log) -> None:
    while batch.rows:
        log.add(batch.step())


CASES = [
    ("Find the dog.", DOG),
    ("图中有小狗吗？", BOTH),
    ("Detect: dog, cat, the leftmost dog, 猫", MANY),
    ("?", GENERATED),
]


def check_links(model: Mllm, tokenizer: MllmTokenizer, case: int, groups: list[GroupEvent]) -> None:
    question, answer = CASES[case]
    twin = forced(model, tokenizer, question, answer, case)
    routed = [part for part in answer if isinstance(part, RoutedPhrase)]
    assert [(group.route, group.phrase.text) for group in groups] == [(part.route, part.phrase) for part in routed]
    for decoder, route in (("detection", "[DET]"), ("diffusion", "[GEN]")):
        with torch.inference_mode():
            expected = link_teacher_forced(model, tokenizer, [twin], [decoder])[0]
        mine = [group.embedding for group in groups if group.route == route]
        assert len(mine) == len(expected)
        for embedding, other in zip(mine, expected, strict=True):
            torch.testing.assert_close(embedding, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_links_written_alone_equal_teacher_forced_ones(model: Mllm, tokenizer: MllmTokenizer, case: int) -> None:
    batch, log = ScriptedBatch(model, tokenizer, 1), Log()
    batch.scripts = [script(tokenizer, CASES[case][1])]
    with torch.inference_mode():
        (row,) = log.add(batch.join([prompt(model, tokenizer, CASES[case][0], case)]))
    run(batch, log)
    check_links(model, tokenizer, case, log.groups(row))
    assert log.finish(row).reason is FinishReason.STOP


@pytest.mark.parametrize("tables", ["separate", "shared"])
def test_links_in_a_mixed_batch_equal_teacher_forced_ones(tokenizer: MllmTokenizer, tables: str) -> None:
    model = build_model(tokenizer, query_tables=tables)
    batch, log = ScriptedBatch(model, tokenizer, 4), Log()
    rows: dict[int, Row] = {}
    with torch.inference_mode():
        # Rows join at different times, so their steps of different widths meet in every combination.
        for joining in ([2], [0, 3], [1]):
            batch.scripts = [script(tokenizer, CASES[case][1]) for case in joining]
            joined = batch.join([prompt(model, tokenizer, CASES[case][0], case) for case in joining])
            rows.update(zip(joining, log.add(joined), strict=True))
            log.add(batch.step())
            log.add(batch.step())
    run(batch, log)
    for case, row in rows.items():
        check_links(model, tokenizer, case, log.groups(row))
        text = "".join(part.text if isinstance(part, Text) else part.phrase for part in CASES[case][1])
        assert log.text(row) == text
        for group in log.groups(row):
            assert text[group.phrase.start : group.phrase.end] == group.phrase.text
            assert group.log_probability < 0


def test_the_fast_path_does_not_depend_on_company(model: Mllm, tokenizer: MllmTokenizer) -> None:
    prompts = [forced(model, tokenizer, *CASES[case], case) for case in (0, 2)]
    with torch.inference_mode():
        together = link_teacher_forced(model, tokenizer, prompts, ["detection", "detection"])
        for links, one in zip(together, prompts, strict=True):
            alone = link_teacher_forced(model, tokenizer, [one], ["detection"])[0]
            torch.testing.assert_close(links, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1e-40, 1e-6, 1e-3])
def test_the_coldest_sampling_is_greedy(temperature: float) -> None:
    logits = torch.tensor([-50.0, float("-inf"), 80.0, 79.0])
    sampling = Sampling(temperature=temperature, top_p=0.9, seed=1)
    assert pick(logits, sampling, sampling.generator()) == 2


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_joining_and_leaving_changes_no_answer(model: Mllm, tokenizer: MllmTokenizer, temperature: float) -> None:
    def ask(number: int) -> Prompt:
        sampling = Sampling(temperature=temperature, top_p=0.95, seed=number + 1, max_new_tokens=12 + 5 * number)
        return prompt(model, tokenizer, "Find the dog. " * (number + 1), number, sampling)

    alone = []
    for number in range(5):
        batch, log = RunningBatch(model, tokenizer, 1), Log()
        with torch.inference_mode():
            (row,) = log.add(batch.join([ask(number)]))
        run(batch, log)
        alone.append((log.text(row), log.finish(row)))

    batch, log = RunningBatch(model, tokenizer, 3), Log()
    rows, waiting = [], list(range(5))
    with torch.inference_mode():
        while waiting or batch.rows:
            if batch.rows:
                log.add(batch.step())
            joining, waiting = waiting[: batch.free], waiting[batch.free :]
            if joining:
                rows += log.add(batch.join([ask(number) for number in joining]))
    assert [(log.text(row), log.finish(row)) for row in rows] == alone


def test_a_row_that_is_taken_out_leaves_the_others_as_they_were(model: Mllm, tokenizer: MllmTokenizer) -> None:
    alone, alone_log = RunningBatch(model, tokenizer, 1), Log()
    with torch.inference_mode():
        (expected,) = alone_log.add(alone.join([prompt(model, tokenizer, "Find the cat.", 1)]))
    run(alone, alone_log)
    batch, log = RunningBatch(model, tokenizer, 3), Log()
    questions = ["Find the dog.", "How many dogs are there?", "Find the cat."]
    with torch.inference_mode():
        rows = log.add(batch.join([prompt(model, tokenizer, text, n % 2) for n, text in enumerate(questions, 5)]))
        batch.leave(rows[0])
        log.add(batch.step())
        batch.leave(rows[1])
        del rows[:2]
        rows += log.add(batch.join([prompt(model, tokenizer, "Find the cat.", 1)]))
    run(batch, log)
    assert log.text(rows[1]) == alone_log.text(expected)


def test_free_writing_never_emits_placeholders(tokenizer: MllmTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(tokenizer, seed=3)
    # A model that longs for special tokens, placeholders above all.
    bias = torch.zeros(model.config.vocab_size)
    bias[sorted(tokenizer.special_ids)] = 12.0
    bias[[tokenizer.im_end_id, tokenizer.observe_id]] = 6.0
    bias[[tokenizer.link_id, tokenizer.image_context_id]] = 30.0
    plain = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: plain(hidden) + bias)
    batch, log = RunningBatch(model, tokenizer, 8), Log()
    written: list[int] = []
    take = batch._take

    def recording(row: Row, token: int, *rest: object) -> None:
        written.append(token)
        take(row, token, *rest)

    monkeypatch.setattr(batch, "_take", recording)
    rows: list[Row] = []
    with torch.inference_mode():
        for round_number in range(60):
            if batch.free:
                asked = [
                    prompt(model, tokenizer, "Find the dog.", 0, Sampling(2.0, 1.0, 100 * round_number + n + 1, 60))
                    for n in range(batch.free)
                ]
                rows += log.add(batch.join(asked))
            log.add(batch.step())
    run(batch, log)
    routes = set(tokenizer.route_of_id)
    may = {tokenizer.im_end_id, tokenizer.observe_id, tokenizer.phrase_start_id, tokenizer.phrase_end_id} | routes
    assert len(written) > 500
    assert set(written) & tokenizer.special_ids <= may
    assert routes <= set(written)
    assert tokenizer.observe_id in written
    for row in rows:
        if log.finish(row).reason is FinishReason.OBSERVE:
            assert log.groups(row)
        for group in log.groups(row):
            assert group.phrase.text
            assert group.embedding.shape == ((24,) if group.route == "[DET]" else (6, 20))
            assert torch.isfinite(group.embedding).all()


def test_a_full_context_ends_the_answer(model: Mllm, tokenizer: MllmTokenizer) -> None:
    ask = prompt(model, tokenizer, "dog " * 200, 0, Sampling(max_new_tokens=5000, temperature=9.0, seed=5))
    batch, log = RunningBatch(model, tokenizer, 1), Log()
    batch._allowed._bias[:, tokenizer.im_end_id] = float("-inf")
    with torch.inference_mode():
        (row,) = log.add(batch.join([ask]))
    run(batch, log)
    assert log.finish(row).reason is FinishReason.LENGTH
    assert row.length <= model.config.max_tokens


def test_a_group_is_completed_even_when_its_routing_token_is_the_last(model: Mllm, tokenizer: MllmTokenizer) -> None:
    tokens = script(tokenizer, (RoutedPhrase("[DET]", "dog"), Text("...")))
    upto_route = tokens.index(tokenizer.route_ids["[DET]"]) + 1
    batch, log = ScriptedBatch(model, tokenizer, 1), Log()
    batch.scripts = [[*tokens, tokenizer.im_end_id]]
    with torch.inference_mode():
        (row,) = log.add(batch.join([prompt(model, tokenizer, "Find", 0, Sampling(max_new_tokens=upto_route))]))
    run(batch, log)
    assert [group.phrase.text for group in log.groups(row)] == ["dog"]
    assert log.finish(row) == FinishEvent(FinishReason.LENGTH, upto_route)


def test_a_stop_string_ends_the_answer(model: Mllm, tokenizer: MllmTokenizer) -> None:
    batch, log = ScriptedBatch(model, tokenizer, 1), Log()
    batch.scripts = [script(tokenizer, (Text("Here is the dog, and the cat."),))]
    with torch.inference_mode():
        (row,) = log.add(batch.join([prompt(model, tokenizer, "?", 0, Sampling(stop=(", and",)))]))
    run(batch, log)
    assert log.text(row) == "Here is the dog"
    assert log.finish(row).reason is FinishReason.STOP
