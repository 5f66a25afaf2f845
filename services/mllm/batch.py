"""The running batch: sequences that decode together, joining and leaving between steps. Runs in the model thread.

A step feeds every row its next chunk: one token, or a routing token with its super-link queries, which makes that row
wider for one step. The chunks of a step are packed one behind the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate

import torch
from torch import Tensor

from services.mllm.answer import AnswerWriter, Phrase
from services.mllm.conversation import Rendered
from services.mllm.json_grammar import JsonGrammar
from services.mllm.model import Mllm
from services.mllm.sampling import AllowedTokens, Sampling, log_probability, pick
from services.mllm.slots import Step
from services.mllm.token_choices import TokenChoice, choice_of
from services.mllm.tokenizer import MllmTokenizer
from superlink.errors import SuperlinkError


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    OBSERVE = "observe"


@dataclass(frozen=True)
class TextEvent:
    """Visible text that the answer goes on with."""

    text: str
    # Where log-probabilities are wanted: of this text, and of routing tokens, which may stand without any.
    tokens: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True)
class GroupEvent:
    """A routed phrase whose link embedding is complete."""

    route: str
    phrase: Phrase
    # On the CPU: [width], or [queries, width] for decoders that take one vector a query.
    embedding: Tensor
    log_probability: float


@dataclass(frozen=True)
class FinishEvent:
    """The end of an answer."""

    reason: FinishReason
    # Tokens that were sampled.
    completion_tokens: int


AnswerEvent = TextEvent | GroupEvent | FinishEvent


@dataclass(frozen=True)
class Prompt:
    """What one request gives the model."""

    rendered: Rendered
    # [image tokens, hidden]; None without images.
    image_features: Tensor | None
    sampling: Sampling = field(default_factory=Sampling)
    # [regions, hidden]; None without visual prompts.
    region_features: Tensor | None = None
    # What the text is held to.
    grammar: JsonGrammar | None = None


@dataclass(eq=False)
class Row:
    """One running sequence."""

    sampling: Sampling
    writer: AnswerWriter
    generator: torch.Generator
    # Ids that the next step feeds.
    chunk: list[int]
    grammar: JsonGrammar | None = None
    # Routing tokens that must not come.
    barred: list[int] = field(default_factory=list)
    # Tokens whose keys are stored.
    length: int = 0
    completion_tokens: int = 0
    # Set between a routing token and the step that runs its queries.
    route: str = ""
    route_log_probability: float = 0.0
    # Nothing is sampled after the next step.
    is_full: bool = False
    finished: bool = False
    # Why the answer cannot go on; it is finished then, without a ``FinishEvent``.
    failure: SuperlinkError | None = None
    # Code points that were shown, and the tokens that are not, each with the place where its text begins.
    shown: int = 0
    unreported: list[tuple[int, TokenChoice]] = field(default_factory=list)


class RunningBatch:
    """Rows in slots 0 to ``len(rows)``; the order may change when a row leaves."""

    def __init__(self, model: Mllm, tokenizer: MllmTokenizer, max_rows: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._max_rows = max_rows
        self._max_tokens = model.config.max_tokens
        self._cache = model.slot_cache(max_rows)
        self._device = model.internvl.lm_head.weight.device
        self._allowed = AllowedTokens(tokenizer, model.config.vocab_size, self._device)
        self.rows: list[Row] = []

    @property
    def free(self) -> int:
        """Rows that may join."""
        return self._max_rows - len(self.rows)

    def join(self, prompts: Sequence[Prompt]) -> list[tuple[Row, list[AnswerEvent]]]:
        """Prefill ``prompts`` together and sample the first token of each. They must fit: ``len(prompts) <= free``."""
        rows = [self._row(prompt) for prompt in prompts]
        first = len(self.rows)
        self.rows.extend(rows)
        return self._advance(first, rows, *_features(prompts))

    def step(self) -> list[tuple[Row, list[AnswerEvent]]]:
        """Feed every row its chunk and sample its next token. Rows that finish leave."""
        return self._advance(0, list(self.rows))

    def leave(self, row: Row) -> None:
        """Take a row out; the last one moves into its slot."""
        place = self.rows.index(row)
        last = self.rows.pop()
        if last is not row:
            self._cache.move(len(self.rows), place, last.length)
            self.rows[place] = last

    def clear(self) -> None:
        """Drop every row."""
        self.rows.clear()

    def _row(self, prompt: Prompt) -> Row:
        sampling, tokenizer = prompt.sampling, self._tokenizer
        writer = AnswerWriter(tokenizer, sampling.stop)
        routes = tokenizer.route_ids if sampling.routes is None else sampling.routes
        barred = [token_id for route, token_id in tokenizer.route_ids.items() if route not in routes]
        ids = list(prompt.rendered.input_ids)
        return Row(sampling, writer, sampling.generator(), ids, prompt.grammar, barred)

    def _advance(
        self, first: int, rows: list[Row], image_features: Tensor | None = None, region_features: Tensor | None = None
    ) -> list[tuple[Row, list[AnswerEvent]]]:
        hidden = self._forward(first, rows, image_features, region_features)
        # Where each row's chunk ends among the packed tokens.
        ends = list(accumulate(len(row.chunk) for row in rows))
        events: list[list[AnswerEvent]] = [[] for _ in rows]
        self._collect_groups(rows, ends, hidden, events)
        last = hidden[[end - 1 for end in ends]]
        for row in rows:
            row.length += len(row.chunk)
        tokens, logits = self._sample(rows, last)
        for place, row in enumerate(rows):
            if row.is_full:
                self._finish(row, FinishReason.LENGTH, events[place])
            else:
                self._take(row, tokens[place], logits[place], events[place])
        for row in rows:
            if row.finished:
                self.leave(row)
        return list(zip(rows, events, strict=True))

    def _forward(
        self, first: int, rows: Sequence[Row], image_features: Tensor | None, region_features: Tensor | None
    ) -> Tensor:
        """States ``[tokens, hidden]`` of the rows' chunks, one behind the other."""
        widths = [len(row.chunk) for row in rows]
        step = Step.plan(first, [row.length for row in rows], widths, self._device)
        ids = torch.tensor([[token for row in rows for token in row.chunk]], device=self._device)
        embeddings = self._model.embed(ids, image_features, region_features)[0]
        return self._model.run_step(embeddings, step, self._cache)

    def _collect_groups(
        self, rows: Sequence[Row], ends: Sequence[int], hidden: Tensor, events: list[list[AnswerEvent]]
    ) -> None:
        """Project the states of the groups that this step completed and copy them to the host, once a route."""
        closed: dict[str, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            if row.route:
                closed[row.route].append(place)
        for route, places in closed.items():
            queries, decoder = self._tokenizer.queries(route), self._model.link.routes[route].decoder
            states = torch.stack([hidden[ends[place] - queries : ends[place]] for place in places])
            embeddings = self._model.link.project(states, decoder).float().cpu()
            for place, embedding in zip(places, embeddings, strict=True):
                row = rows[place]
                events[place].append(GroupEvent(route, row.writer.phrase, embedding, row.route_log_probability))
                row.route = ""

    def _sample(self, rows: Sequence[Row], states: Tensor) -> tuple[list[int], Tensor]:
        """The next token of each row from its last state, and the logits ``[rows, vocabulary]`` it was picked from."""
        logits = self._allowed.apply(self._model.logits(states), [row.writer.state for row in rows])
        for place, row in enumerate(rows):
            if row.barred:
                logits[place, row.barred] = float("-inf")
            if row.grammar is not None:
                logits[place] = row.grammar.constrain(logits[place])
        tokens: list[int] = logits.argmax(dim=-1).tolist()
        for place, row in enumerate(rows):
            if row.sampling.temperature > 0.0 and not row.is_full:
                tokens[place] = pick(logits[place], row.sampling, row.generator)
        return tokens, logits

    def _take(self, row: Row, token: int, logits: Tensor, events: list[AnswerEvent]) -> None:
        """Let ``token`` become part of the row's answer and decide what the next step feeds."""
        row.completion_tokens += 1
        if token == self._tokenizer.im_end_id:
            self._finish(row, FinishReason.STOP, events)
            return
        if token == self._tokenizer.observe_id:
            self._finish(row, FinishReason.OBSERVE, events)
            return
        start = row.writer.length
        shown = row.writer.push(token)
        self._note_choice(row, token, logits, start)
        self._show(row, shown, events)
        if row.writer.stopped:
            self._finish(row, FinishReason.STOP, events)
            return
        if row.grammar is not None:
            row.grammar.accept(token)
            row.failure = row.grammar.failure
            row.finished = row.failure is not None
            if row.grammar.is_complete:
                self._finish(row, FinishReason.STOP, events)
            if row.finished:
                return
        row.chunk = [token]
        route = self._tokenizer.route_of_id.get(token)
        if route is not None:
            row.chunk += [self._tokenizer.link_id] * self._tokenizer.queries(route)
            row.route, row.route_log_probability = route, log_probability(logits, token)
        is_last = row.completion_tokens >= row.sampling.max_new_tokens
        if row.length + len(row.chunk) > self._max_tokens or (is_last and route is None):
            self._finish(row, FinishReason.LENGTH, events)
        # A group that has begun is completed even when its routing token was the last one allowed.
        row.is_full = is_last

    def _note_choice(self, row: Row, token: int, logits: Tensor, start: int) -> None:
        """Remember what stood beside ``token``, whose text begins at ``start``, where the request wants to know."""
        alternatives = row.sampling.top_log_probabilities
        is_reported = token not in self._tokenizer.special_ids or token in self._tokenizer.route_of_id
        if alternatives is not None and is_reported:
            row.unreported.append((start, choice_of(logits, token, alternatives, self._tokenizer)))

    @staticmethod
    def _show(row: Row, text: str, events: list[AnswerEvent]) -> None:
        """Show more text, with its tokens. Tokens of text that a stop string cut off are never shown."""
        row.shown += len(text)
        # A routing token has no text; what stands before it was shown.
        is_shown = [start < row.shown or not choice.encoded for start, choice in row.unreported]
        tokens = tuple(choice for (_, choice), shown in zip(row.unreported, is_shown, strict=True) if shown)
        row.unreported = [entry for entry, shown in zip(row.unreported, is_shown, strict=True) if not shown]
        if text or tokens:
            events.append(TextEvent(text, tokens))

    def _finish(self, row: Row, reason: FinishReason, events: list[AnswerEvent]) -> None:
        self._show(row, row.writer.finish(), events)
        events.append(FinishEvent(reason, row.completion_tokens))
        row.finished = True


def link_teacher_forced(
    model: Mllm, tokenizer: MllmTokenizer, prompts: Sequence[Prompt], decoders: Sequence[str]
) -> list[Tensor]:
    """The fast path: every prompt holds its whole answer; one pass gives all link embeddings.

    Returns one ``[groups_i, (queries,) width]`` on the CPU a prompt, for the decoder of the same place in ``decoders``.
    """
    device = model.internvl.lm_head.weight.device
    longest = max(len(prompt.rendered.input_ids) for prompt in prompts)
    ids = torch.full((len(prompts), longest), tokenizer.pad_id, device=device)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    for place, prompt in enumerate(prompts):
        length = len(prompt.rendered.input_ids)
        ids[place, :length] = torch.tensor(prompt.rendered.input_ids, device=device)
        mask[place, :length] = 1
    hidden = model(ids, mask, *_features(prompts)).hidden
    return [
        model.links(hidden[place : place + 1], [prompt.rendered.groups], decoder)[0].float().cpu()
        for place, (prompt, decoder) in enumerate(zip(prompts, decoders, strict=True))
    ]


def _features(prompts: Sequence[Prompt]) -> tuple[Tensor | None, Tensor | None]:
    """Image and region features of all prompts in order; None where none has any."""
    images = [prompt.image_features for prompt in prompts if prompt.image_features is not None]
    regions = [prompt.region_features for prompt in prompts if prompt.region_features is not None]
    return torch.cat(images) if images else None, torch.cat(regions) if regions else None
