"""A model's answers to the conversation rows of data sets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.mllm.model import Mllm
from services.mllm.tokenizer import MllmTokenizer
from services.trainer.adaptation.decoding import decode, questions
from services.trainer.adaptation.meta_file import DataSet
from services.trainer.adaptation.row_reader import RowReader
from services.trainer.adaptation.row_stream import RowSets

_ROWS_AT_A_TIME = 16


@dataclass(frozen=True)
class Answered:
    """One question of a row, what should be said, and what the model said."""

    set: str
    # The row's id.
    row: int | str
    question: str
    answer: str
    prediction: str
    # Of the prompt.
    tokens: int
    # From pixels to the answer's end, as a share of the questions that were decoded together.
    seconds: float


def answer_sets(
    mllm: Mllm,
    tokenizer: MllmTokenizer,
    sets: Mapping[str, DataSet],
    max_tiles: int,
    rows: int | None,
    advance: Callable[[int], None],
    video_frames: int = 8,
) -> list[Answered]:
    """Answer every question of ``sets``, or of the first ``rows`` rows of each.

    Later questions of a row are asked behind the answers that it has for the earlier ones. ``max_tiles`` holds for all
    sets, ``repeat_time`` for none. ``advance`` is told of questions as they are answered. Raises RowError.
    """
    files = RowSets(sets)
    reader = RowReader(mllm.config, tokenizer, max_tiles, video_frames)
    answered = []
    for name, data_set in sets.items():
        unlimited = data_set.model_copy(update={"max_dynamic_patch": None})
        count = data_set.length if rows is None else min(rows, data_set.length)
        for first in range(0, count, _ROWS_AT_A_TIME):
            began = time.monotonic()
            asked = [
                question
                for number in range(first, min(first + _ROWS_AT_A_TIME, count))
                for question in questions(mllm, tokenizer, reader, files.row(name, number), unlimited)
            ]
            predictions = decode(mllm, tokenizer, [question.prompt for question in asked])
            seconds = (time.monotonic() - began) / max(1, len(asked))
            for question, prediction in zip(asked, predictions, strict=True):
                tokens = len(question.prompt.rendered.input_ids)
                answered.append(
                    Answered(name, question.row, question.question, question.answer, prediction, tokens, seconds)
                )
            advance(len(asked))
    return answered
