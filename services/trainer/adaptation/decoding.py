"""Asking a model what rows ask: greedily, by the running batch that serves requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from services.mllm.batch import Prompt, Row, RunningBatch, TextEvent
from services.mllm.conversation import Text, Turn, render
from services.mllm.model import Mllm
from services.mllm.sampling import Sampling
from services.mllm.tokenizer import MllmTokenizer
from services.trainer.adaptation.meta_file import DataSet
from services.trainer.adaptation.row_reader import RowReader
from services.trainer.adaptation.rows import ConversationRow, RowError

_RUNNING = 16
# No tool is there to be called.
_GREEDY = Sampling(max_new_tokens=256, routes=frozenset())


@dataclass(frozen=True)
class Question:
    """One question of a row, behind the answers that the row has for the earlier ones."""

    # The row's id.
    row: int | str
    question: str
    # What should be said.
    answer: str
    prompt: Prompt


@torch.inference_mode()
def questions(
    mllm: Mllm, tokenizer: MllmTokenizer, reader: RowReader, row: ConversationRow, data_set: DataSet
) -> Iterator[Question]:
    """The questions of ``row``. Raises RowError for one that is longer than what the model reads."""
    seen = reader.see(row, data_set)
    device = mllm.query_start.device
    features = [mllm.encode_images(tiles.to(device)).flatten(0, 1) for tiles in seen.images]
    counts = [len(tokens) for tokens in features]
    for place, turn in enumerate(seen.turns):
        if turn.role != "assistant":
            continue
        before = seen.turns[:place]
        rendered = render(before, tokenizer, counts, for_generation=True)
        if len(rendered.input_ids) >= mllm.config.max_tokens:
            raise RowError(
                f"{data_set.annotation}: row {row.id} asks with {len(rendered.input_ids)} tokens, and the model reads "
                f"{mllm.config.max_tokens} at most. Lower max_tiles."
            )
        shown = sum(token == tokenizer.image_context_id for token in rendered.input_ids)
        images = torch.cat(features)[:shown] if shown else None
        yield Question(row.id, _words(before[-1]), _words(turn), Prompt(rendered, images, _GREEDY))


@torch.inference_mode()
def decode(mllm: Mllm, tokenizer: MllmTokenizer, prompts: Sequence[Prompt]) -> list[str]:
    """The text that ``mllm`` answers to each of ``prompts``."""
    texts = [""] * len(prompts)
    batch = RunningBatch(mllm, tokenizer, _RUNNING)
    places: dict[Row, int] = {}
    waiting = list(range(len(prompts)))
    while waiting or batch.rows:
        if waiting and batch.free:
            joining, waiting = waiting[: batch.free], waiting[batch.free :]
            steps = batch.join([prompts[place] for place in joining])
            places.update({row: place for (row, _), place in zip(steps, joining, strict=True)})
        else:
            steps = batch.step()
        for row, events in steps:
            texts[places[row]] += "".join(event.text for event in events if isinstance(event, TextEvent))
    return texts


def _words(turn: Turn) -> str:
    return "".join(part.text for part in turn.parts if isinstance(part, Text))
