"""What link output costs while generating: ``python tests/benchmarks/link_overhead.py [--weights DIR] [--json FILE]``.

The same scripted answers (three routed phrases a sentence) are decoded by the real running batch in three ways:

- ``links``: as served: routing tokens widen the step, the states are projected and copied out.
- ``no_output``: the step widens, but nothing is projected or copied. The cost of *link output* is the distance to this.
- ``no_queries``: routing tokens are ordinary tokens. The distance to this is the cost of the whole super link.

The ways take turns step by step, and the clock is the thread's own CPU time (with one thread), so that what else runs
on the machine matters little. Throughput counts sampled tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from services.mllm.batch import AnswerEvent, Prompt, Row, RunningBatch
from services.mllm.config import MllmConfig
from services.mllm.conversation import ImagePart, RoutedPhrase, Text, Turn, render
from services.mllm.model import Mllm
from services.mllm.sampling import Sampling
from services.mllm.tokenizer import MllmTokenizer

SENTENCE = (
    Text("Here is the "),
    RoutedPhrase("[DET]", "dog"),
    Text(", and behind it the "),
    RoutedPhrase("[DET]", "red car"),
    Text(" with the "),
    RoutedPhrase("[DET]", "leftmost cat"),
    Text(". "),
)
QUESTION = "Where are the dog, the red car and the leftmost cat?"


class ScriptedBatch(RunningBatch):
    """Samples as usual, then writes the given answer instead."""

    script: list[int]

    def _sample(self, rows: list[Row], states: Tensor) -> tuple[list[int], Tensor]:
        _, logits = super()._sample(rows, states)
        # Rows stand at different places of the sentence, as the rows of different requests do.
        places = [row.completion_tokens + 5 * number for number, row in enumerate(rows)]
        return [self.script[place % len(self.script)] for place in places], logits


class WithoutOutput(ScriptedBatch):
    """Runs the queries and drops their states."""

    def _collect_groups(
        self, rows: Sequence[Row], ends: Sequence[int], hidden: Tensor, events: list[list[AnswerEvent]]
    ) -> None:
        for row in rows:
            row.route = ""


class WithoutQueries(WithoutOutput):
    """Treats routing tokens as ordinary ones."""

    def _take(self, row: Row, token: int, logits: Tensor, events: list[AnswerEvent]) -> None:
        super()._take(row, token, logits, events)
        row.chunk = row.chunk[:1]


WAYS: dict[str, type[ScriptedBatch]] = {
    "links": ScriptedBatch,
    "no_output": WithoutOutput,
    "no_queries": WithoutQueries,
}


def measure(model: Mllm, tokenizer: MllmTokenizer, rows: int, tokens: int, repeats: int) -> dict[str, float]:
    """Sampled tokens a second of each way, and what the links cost in per cent."""
    rendered = render([Turn("assistant", SENTENCE)], tokenizer, [], for_generation=False)
    script = [label for label in rendered.labels if label >= 0 and label != tokenizer.im_end_id]
    turns = [Turn("user", (ImagePart(0), Text(QUESTION)))]
    prompt = render(turns, tokenizer, [model.config.tokens_per_tile], for_generation=True)
    side = model.config.tile_size
    features = model.encode_images(torch.zeros(1, 3, side, side))[0]
    # One step more than is timed, so that no row finishes inside.
    ask = Prompt(prompt, features, Sampling(max_new_tokens=tokens + 2))
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        batches = {}
        for way, kind in WAYS.items():
            batches[way] = kind(model, tokenizer, rows)
            batches[way].script = script
            batches[way].join([ask] * rows)
        spent = dict.fromkeys(WAYS, 0.0)
        for _ in range(tokens):
            for way, batch in batches.items():
                started = clock()
                batch.step()
                spent[way] += clock() - started
        for way in WAYS:
            seconds[way].append(spent[way])
    figures = {f"{way}_tokens_per_s": rows * tokens / statistics.median(values) for way, values in seconds.items()}
    for way in ("no_output", "no_queries"):
        ratios = [mine / other for mine, other in zip(seconds["links"], seconds[way], strict=True)]
        figures[f"cost_over_{way}_percent"] = 100 * (statistics.median(ratios) - 1)
    figures["step_ms"] = 1000 * statistics.median(seconds["links"]) / tokens
    return figures


def main() -> None:
    """Measure batches of 1 and 8 and print what links cost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, help="an MLLM folder (default: random weights of the tiny size)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.weights:
        model, tokenizer = Mllm.load(arguments.weights)
    else:
        tokenizer = MllmTokenizer.train(
            [QUESTION, "Here is the dog, and behind it the red car with the leftmost cat."] * 9, 2000
        )
        model = Mllm(MllmConfig.for_tokenizer(tokenizer, vocab_size=2000)).eval()
    figures = {}
    with torch.inference_mode():
        for rows in (1, 8):
            measure(model, tokenizer, rows, 20, 1)
            figures[f"batch_{rows}"] = measure(model, tokenizer, rows, arguments.tokens, arguments.repeats)
    text = json.dumps(figures, indent=2)
    sys.stdout.write(text + "\n")
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
