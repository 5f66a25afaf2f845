"""Asks the data sets of a meta file at several limits of tiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

from services.evaluation.adaptation.accuracy import is_right
from services.evaluation.adaptation.answering import Answered, answer_sets
from services.evaluation.resolution.report import SetFigures
from services.mllm.model import Mllm
from services.trainer.adaptation.meta_file import DataSet


def measure_resolution(
    folders: Sequence[Path],
    sets: Mapping[str, DataSet],
    limits: Sequence[int],
    rows: int | None,
    advance: Callable[[int], None],
) -> Iterator[SetFigures]:
    """Let the models in ``folders`` answer ``sets`` at each of ``limits``; yields figures as they are there.

    ``rows``: only so many of each set. ``advance`` is told of questions as they are answered. Raises WeightsError and
    RowError.
    """
    for folder in folders:
        mllm, tokenizer = Mllm.load(folder)
        for limit in limits:
            by_set: dict[str, list[Answered]] = defaultdict(list)
            for answered in answer_sets(mllm, tokenizer, sets, limit, rows, advance):
                by_set[answered.set].append(answered)
            for name, own in by_set.items():
                yield SetFigures(
                    weights=str(folder),
                    max_tiles=limit,
                    name=name,
                    questions=len(own),
                    accuracy=mean(is_right(each) for each in own),
                    tokens=mean(each.tokens for each in own),
                    seconds=mean(each.seconds for each in own),
                )
